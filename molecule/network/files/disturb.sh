#!/bin/bash
# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
# disturb.sh delay|mtu|silence|none ADDRESS: make the way to one host bad, or right again.
set -euo pipefail
how=$1 address=$2
ip route del "$address/32" 2> /dev/null || true
interface=$(ip -oneline route get "$address" | sed -E 's/.* dev ([^ ]+).*/\1/')
tc qdisc del dev "$interface" root 2> /dev/null || true
ip neighbour del "$address" dev "$interface" 2> /dev/null || true

case $how in
  delay)
    # Only what goes to that host is in the class; all else is not even queued.
    tc qdisc add dev "$interface" root handle 1: htb
    tc class add dev "$interface" parent 1: classid 1:1 htb rate 10gbit
    tc filter add dev "$interface" parent 1: protocol ip u32 match ip dst "$address/32" flowid 1:1
    if tc qdisc add dev "$interface" parent 1:1 netem delay 1ms 2> /dev/null; then
      echo "netem delays each packet by 1 ms"
    else
      # A kernel without netem: at 1 Mbit/s the small packet of a ping takes 1 ms.
      tc class change dev "$interface" parent 1: classid 1:1 htb rate 1mbit burst 1 cburst 1
      tc qdisc add dev "$interface" parent 1:1 pfifo limit 4
      echo "this kernel has no netem: htb lets each packet through at 1 Mbit/s, which takes a small one 1 ms"
    fi
    ;;
  mtu)
    ip route add "$address/32" dev "$interface" mtu lock 1400
    echo "the way takes packets of at most 1400 bytes"
    ;;
  silence)
    ip neighbour replace "$address" lladdr 02:00:00:00:00:01 nud permanent dev "$interface"
    echo "packets to the host go to a card that nobody has"
    ;;
esac
