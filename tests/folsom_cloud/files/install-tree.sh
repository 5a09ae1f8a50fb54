#!/bin/sh
# install-tree.sh PROJECT: from /opt/PROJECT to where a package has it, compiled, programs run by Python 2.7.
set -eu
project=$1 tree=/opt/$1
cp -r "$tree/$project" /usr/lib/python2.7/dist-packages/
python2.7 -m compileall -q "/usr/lib/python2.7/dist-packages/$project" >/dev/null || true    # templates in it are no Python
for program in "$tree/bin/$project"-*; do
    sed '1s|.*|#!/usr/bin/python2.7|' "$program" >"/usr/bin/${program##*/}"
    chmod 0755 "/usr/bin/${program##*/}"
done
if [ "$project" = quantum ]; then
    cp "$tree"/etc/api-paste.ini "$tree"/etc/policy.json "$tree"/etc/rootwrap.conf /etc/quantum/
    cp -r "$tree"/etc/quantum/rootwrap.d /etc/quantum/
else
    cp "$tree"/etc/nova/api-paste.ini "$tree"/etc/nova/policy.json /etc/nova/
fi
rm -r "$tree"
