#!/bin/sh
# ip as it was when Folsom's agents read its output: namespaces without their ids, devices without their peers.
case " $* " in
*" netns list "* | *" link "*)
    out=$(/bin/ip "$@")
    status=$?
    [ -z "$out" ] || printf '%s\n' "$out" | sed -e 's/ (id: [0-9]*)$//' -e 's/^\([0-9]*: [^@:]*\)@[^:]*:/\1:/'
    exit $status
    ;;
*) exec /bin/ip "$@" ;;
esac
