#!/bin/sh
# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
# Turn a minimal Debian root file system ($1) into a lab host: what an installer leaves on a real machine.
set -eu
root=$1

chroot "$root" useradd --create-home --shell /bin/bash ops
echo 'ops ALL=(ALL) NOPASSWD: ALL' > "$root/etc/sudoers.d/ops"
chmod 0440 "$root/etc/sudoers.d/ops"

# Each host makes its own host keys at its first boot.
rm -f "$root"/etc/ssh/ssh_host_*
mkdir -p "$root/etc/systemd/system/ssh.service.d"
printf '[Service]\nExecStartPre=\nExecStartPre=/usr/bin/ssh-keygen -A\nExecStartPre=/usr/sbin/sshd -t\n' \
    > "$root/etc/systemd/system/ssh.service.d/host-keys.conf"
cat > "$root/etc/ssh/sshd_config.d/lab.conf" <<'CONF'
AuthorizedKeysFile /etc/ssh/authorized_keys/%u
PasswordAuthentication no
UseDNS no
MaxStartups 100
MaxSessions 100
CONF

# A container has no kernel of its own to load modules into and no consoles.
chroot "$root" systemctl mask getty@.service console-getty.service systemd-logind.service \
    systemd-udevd.service systemd-udevd-kernel.socket systemd-udevd-control.socket systemd-udev-trigger.service \
    modprobe@.service systemd-modules-load.service >/dev/null 2>&1

: > "$root/etc/machine-id"
rm -f "$root/var/lib/dbus/machine-id"

# Read by the system's Python alone, at its start.
install -m 0644 "$(dirname "$0")/lab_bytecode.py" "$root/usr/lib/python3/dist-packages/"
echo 'import lab_bytecode' > "$root/usr/lib/python3/dist-packages/lab_bytecode.pth"

# Without a private view of the control groups, two hosts' systemd would manage each other's services.
cat > "$root/usr/local/sbin/lab-init" <<'INIT'
#!/bin/sh
umount -R /sys/fs/cgroup 2>/dev/null
mount -t cgroup2 cgroup2 /sys/fs/cgroup || exit 1
exec /sbin/init
INIT
chmod 0755 "$root/usr/local/sbin/lab-init"
