#!/bin/sh
# SPDX-FileCopyrightText: 2026 The onprem.llm authors
# SPDX-License-Identifier: Apache-2.0
# What a site's own CA would supply for one host, and what it must not: DIRECTORY NAME ADDRESS
set -eu
umask 077
mkdir -p "$1/$2"
cd "$1/$2"
case $3 in *[!0-9.]*) other="DNS:$3" ;; *) other="IP:$3" ;; esac

key() { openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1.key" 2>/dev/null; }
sign() { # NAME SIGNER DAYS KEY EXTENSIONS
  printf '%b' "$5" > "$1.ext"
  openssl req -new -key "$4.key" -subj "/CN=$1" -out "$1.csr" 2>/dev/null
  openssl x509 -req -in "$1.csr" -CA "$2.pem" -CAkey "$2.key" -CAcreateserial -days "$3" -extfile "$1.ext" \
    -out "$1.pem" 2>/dev/null
}
for name in root other; do
  key $name
  openssl req -x509 -new -key $name.key -subj "/CN=$name" -days 400 -addext basicConstraints=critical,CA:TRUE \
    -addext keyUsage=critical,keyCertSign -out $name.pem 2>/dev/null
done
key intermediate
key good
sign intermediate root 400 intermediate "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\n"
leaf="basicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth\nsubjectAltName="
sign good intermediate 90 good "${leaf}DNS:$2,$other\n"
sign ending intermediate 5 good "${leaf}DNS:$2,$other\n"
sign expired intermediate -1 good "${leaf}DNS:$2,$other\n"
sign elsewhere intermediate 90 good "${leaf}DNS:elsewhere.example\n"
