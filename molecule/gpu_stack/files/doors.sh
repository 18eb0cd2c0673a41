#!/bin/bash
# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
# Who is let in on the other hosts of an MPI launch, and who is not: doors.sh USER FOREIGN_ADDRESS HOST…
# FOREIGN_ADDRESS is one of the hosts' network that no host has; this one takes it for a moment.
set -u
user=$1 foreign=$2
shift 2
home=$(getent passwd "$user" | cut -d: -f6)
failed=0

fault() {
    echo "$*"
    failed=1
}

as() {
    runuser --user "$1" -- "${@:2}" < /dev/null 2>&1
}

# refused WHAT COMMAND…: any other message than this would be a test that did not get as far as the key.
refused() {
    if said=$("${@:2}"); then
        fault "let in: $1"
    elif ! grep -q 'Permission denied (publickey' <<< "$said"; then
        fault "$1: $said"
    fi
}

scratch=$(mktemp -d)
trap 'rm -r "$scratch"' EXIT
chown ops "$scratch"
chmod 0755 "$scratch"
as ops ssh-keygen -q -t ed25519 -N '' -f "$scratch/key"
# As if each host had another's key.
sed 's/ ssh-ed25519 [^ ]* / '"$(cut -d' ' -f1,2 "$scratch/key.pub" | sed 's/[/&]/\\&/g')"' /' "$home/.ssh/known_hosts" > "$scratch/false"

for host; do
    said=$(as "$user" ssh "$host" id --user --name) && [ "$said" = "$user" ] || fault "$user is not let in on $host: $said"

    as "$user" ssh -tt "$host" tty > /dev/null && fault "$user has a terminal on $host"
    said=$(as "$user" timeout 20 ssh -o ExitOnForwardFailure=yes -R 0:127.0.0.1:22 "$host" true) && fault "a tunnel from $host"
    grep -q 'remote port forwarding failed' <<< "$said" || fault "a tunnel from $host: $said"

    said=$(as "$user" ssh -o UserKnownHostsFile="$scratch/false" "$host" true) && fault "the false key of $host is taken"
    grep -q 'Host key verification failed' <<< "$said" || fault "the false key of $host: $said"

    device=$(ip -oneline route get "$host" | sed 's/.* dev \([^ ]*\).*/\1/')
    ip address add "$foreign/24" dev "$device"
    refused "$user's key from $foreign on $host" as "$user" ssh -b "$foreign" "$host" true
    ip address delete "$foreign/24" dev "$device"

    for account in root ops; do
        refused "$user's key for $account on $host" as "$user" ssh -l "$account" "$host" true
    done
    refused "another key for $user on $host" as ops ssh -F none -i "$scratch/key" -o IdentitiesOnly=yes -o BatchMode=yes \
        -o UserKnownHostsFile="$scratch/known" -o StrictHostKeyChecking=accept-new -l "$user" "$host" true

    # OpenSSH 9.8 and newer hangs up for a while on an address that failed so often (PerSourcePenalties).
    for _second in $(seq 60); do
        as "$user" ssh "$host" true > /dev/null && break
        sleep 1
    done
    as "$user" ssh "$host" true > /dev/null || fault "$user is not let in on $host any more"
done
exit "$failed"
