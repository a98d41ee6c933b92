#!/usr/bin/env bash
# Builds two of libnbd's own test programs, aio-parallel and synch-parallel, once a machine, and prints the folder
# they are in. They check data integrity over eight connections with requests mixed up.
#
# Sources and headers come from the distribution's archive through apt, with lists of our own: nothing is installed
# and no setting of the system changes. Two things differ from upstream: the programs connect to a URI instead of a
# socket, and they run for 4 s instead of 10.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh

mkdir -p "$DROVER_CACHE"
exec 9> "$DROVER_CACHE/libnbd-tests.lock"
flock 9
version="$(dpkg-query -W -f='${Version}' libnbd0)"
out="$DROVER_CACHE/libnbd-tests/$version"
if [ -x "$out/aio-parallel" ] && [ -x "$out/synch-parallel" ]; then
    echo "$out"
    exit 0
fi

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
. /etc/os-release
mkdir -p "$work"/{lists/partial,cache/archives/partial,headers,include,out}
keys="signed-by=/usr/share/keyrings/debian-archive-keyring.gpg"
printf '%s [%s] http://deb.debian.org/debian %s main\n' deb "$keys" "$VERSION_CODENAME" deb-src "$keys" "$VERSION_CODENAME" \
    > "$work/sources.list"
apt=(apt-get -qq -o Debug::NoLocking=1 -o APT::Sandbox::User= -o "Dir::Etc::sourcelist=$work/sources.list"
    -o Dir::Etc::sourceparts=/dev/null -o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work/cache")
{
    cd "$work"
    "${apt[@]}" update
    "${apt[@]}" source --download-only libnbd
    "${apt[@]}" download libnbd-dev
    tar xf libnbd_*.orig.tar.*z
    dpkg-deb -x libnbd-dev_*.deb headers
    touch include/config.h
    for program in aio-parallel synch-parallel; do
        sed 's/^#define RUN_TIME .*/#define RUN_TIME 4/' libnbd-*/tests/"$program.c" > "$program.c"
        gcc -O2 -Dnbd_connect_unix=nbd_connect_uri -Iinclude -I"$(echo libnbd-*/common/include)" -Iheaders/usr/include \
            "$program.c" -o "out/$program" -l:libnbd.so.0 -lpthread
    done
} >&2
mkdir -p "$(dirname "$out")"
rm -rf "$out"
mv "$work/out" "$out"
echo "$out"
