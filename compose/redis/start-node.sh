#!/bin/sh
# Starts one node: node.conf, then the users and what a replica logs in with, then the arguments.
#
# The passwords come from the environment and reach the server over its standard input: they stand in no file, on no command
# line, and not in the server's environment.
#   REDISCLI_AUTH       of the default user, who may do everything (the name is redis-cli's: it needs no other login here)
#   REDIS_APP_PASSWORD  of the user `penstock`, who may work with data, and may not administer, flush or list them
set -eu

usable() { # usable NAME VALUE: the password stands in URLs and in the server's configuration, where other characters need escapes
    case $2 in
    '') echo "start-node: $1 is not set" >&2 && exit 2 ;;
    *[!A-Za-z0-9._~-]*) echo "start-node: $1 may have letters, digits and . _ ~ - only" >&2 && exit 2 ;;
    esac
}
hash() { printf %s "$1" | sha256sum | cut -d ' ' -f 1; }

usable REDISCLI_AUTH "${REDISCLI_AUTH:-}"
usable REDIS_APP_PASSWORD "${REDIS_APP_PASSWORD:-}"
admin=$REDISCLI_AUTH app=$REDIS_APP_PASSWORD
unset REDISCLI_AUTH REDIS_APP_PASSWORD

exec redis-server "${0%/*}/node.conf" "$@" - <<END
user default on #$(hash "$admin") ~* &* +@all
user penstock on #$(hash "$app") ~* &* +@all -@admin -@dangerous +info +role
masterauth "$admin"
END
