#!/bin/sh
# Hands the database's password from a secret file to libpq, which takes it from the environment only, and starts learnmech.
set -eu
if [ -n "${PGPASSWORD_FILE:-}" ]; then
  if [ ! -r "$PGPASSWORD_FILE" ]; then
    echo "learnmech: PGPASSWORD_FILE=$PGPASSWORD_FILE cannot be read by user $(id -u); see secrets/README.md" >&2
    exit 1
  fi
  PGPASSWORD=$(cat "$PGPASSWORD_FILE")
  export PGPASSWORD
  unset PGPASSWORD_FILE
fi
exec learnmech "$@"
