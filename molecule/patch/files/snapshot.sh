#!/bin/sh
# Everything there is to know of the trees: paths, modes, owners, times, links, contents.
cd /
find usr/share/pyshared usr/lib/python2.7/dist-packages/nova usr/lib/python2.7/dist-packages/quantum \
    usr/bin/quantum* etc/quantum 2>/dev/null | LC_ALL=C sort | while read -r path; do
  if [ -L "$path" ]; then
    stat -c '%n %U:%G %N' "$path"
  elif [ -d "$path" ]; then
    stat -c '%n %a %U:%G' "$path"
  else
    stat -c '%n %a %U:%G %y' "$path"
    sha256sum <"$path"
  fi
done
