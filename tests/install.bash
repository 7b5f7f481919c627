# shellcheck shell=bash
# Sourced by the commands in this directory, from the root of the tree: what a fresh Debian 12 machine lacks.
#
#   install_packages PACKAGE...   Debian packages; nothing to do, and no root needed, when all are there
#   make_venv                     .venv with this tree, editable, and what its tests need; kept while pyproject.toml is as it was
#
# Whoever sources it may define `run COMMAND...` before, to keep a hold on long steps; it returns their exit status.
# `made_policy` names a file to remove if the script ends in between.

made_policy=''
interpreter=/usr/bin/python3
[[ -x $interpreter ]] || interpreter=python3

say() { printf '== %s\n' "$*"; }

if ! declare -F run >/dev/null; then
  run() { "$@" </dev/null; }
fi

install_packages() {
  local missing=() package policy=/usr/sbin/policy-rc.d status=0
  for package in "$@"; do
    [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing+=("$package")
  done
  ((${#missing[@]})) || return 0
  if ((EUID)); then
    say "missing packages: ${missing[*]}; run this with sudo" >&2
    return 1
  fi
  say "installing ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  run apt-get -qq update || return
  # The tests want the programs, not the services that Debian starts with them.
  if [[ ! -e $policy ]]; then
    made_policy=$policy
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
  fi
  run apt-get -qq -o Dpkg::Use-Pty=0 install --yes --no-install-recommends "${missing[@]}" || status=$?
  [[ ! $made_policy ]] || rm -f "$policy"
  [[ ! -d /run/systemd/system ]] || disable_services "${missing[@]}"
  return "$status"
}

disable_services() { # PACKAGE...: what came with it shall not start at the next boot either
  local package unit
  for package in "$@"; do
    case $package in bird2 | frr | gobgpd | prometheus) ;; *) continue ;; esac
    dpkg-query -L "$package" | sed -n 's|.*/systemd/system/\([^/@]*\.service\)$|\1|p' | while read -r unit; do
      systemctl --quiet disable "$unit" || true
    done
  done
}

make_venv() {
  local stamp want
  stamp=.venv/made-from
  want=$("$interpreter" -c 'import sys; print(sys.version)' && pwd && sha256sum pyproject.toml)
  [[ -f $stamp && $(<"$stamp") == "$want" ]] && return 0
  say "making .venv"
  run "$interpreter" -m venv --clear .venv || return
  run .venv/bin/python -m pip --disable-pip-version-check install --quiet --progress-bar off -e '.[test]' || return
  printf '%s\n' "$want" >"$stamp"
}
