#!/bin/sh
# Everything there is to know of the trees and their configuration: paths, modes, owners, times, contents.
cd /
find usr/share/pyshared usr/lib/python2.7/dist-packages/nova usr/lib/python2.7/dist-packages/quantum \
    usr/bin/quantum* etc/quantum 2>/dev/null | LC_ALL=C sort | while read -r path; do
  if [ -L "$path" ]; then
    stat -c '%n %U:%G %N' "$path"
  elif [ -d "$path" ]; then
    stat -c '%n %a %U:%G' "$path"
  else
    case $path in
      etc/*) stat -c '%n %a %U:%G' "$path" ;;    # no bytecode hangs on its time
      *) stat -c '%n %a %U:%G %Y' "$path" ;;      # Python 2.7 knows times to a microsecond at best
    esac
    sha256sum <"$path"
  fi
done
