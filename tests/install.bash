# shellcheck shell=bash
# Sourced by the commands in this directory, from the root of the tree: what a fresh Debian 12 machine lacks.
#
#   install_packages PACKAGE...   Debian packages; nothing to do, and no root needed, when all are there
#   make_venv                     .venv with this tree, editable, and what its tests need; kept while pyproject.toml is as it was
#   hand_back                     to whoever owns the tree, what root made in it; a script that made more calls it again at its end
#
# Whoever sources it may define `run COMMAND...` before, to keep a hold on long steps; it returns their exit status.
# `made_policy` and `said` name files to remove if the script ends in between.

made_policy='' said=''
interpreter=/usr/bin/python3
[[ -x $interpreter ]] || interpreter=python3

say() { printf '== %s\n' "$*"; }

if ! declare -F run >/dev/null; then
  run() { "$@" </dev/null; }
fi

quietly() { # COMMAND...: a long step whose output is shown only if it fails
  local status=0
  said=$(mktemp)
  run "$@" >"$said" 2>&1 || status=$?
  ((status == 0)) || cat "$said" >&2
  rm -f "$said"
  said=''
  return "$status"
}

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
  quietly apt-get -qq -o Dpkg::Use-Pty=0 install --yes --no-install-recommends --no-remove "${missing[@]}" || status=$?
  [[ ! $made_policy ]] || rm -f "$policy"
  [[ ! -d /run/systemd/system ]] || disable_services "${missing[@]}"
  return "$status"
}

disable_services() { # PACKAGE...: what came with it shall not start at the next boot either
  local package unit
  for package in "$@"; do
    case $package in bird2 | containerd | frr | gobgpd | nginx-common | prometheus) ;; *) continue ;; esac
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
  # Now, while the directories that the interpreter makes for it can be handed back.
  run .venv/bin/python -m compileall -q bgpd tests || return
  printf '%s\n' "$want" >"$stamp"
  hand_back
}

# After `sudo` in a user's clone, that user shall be able to run the tests without it, and to remove the tree.
hand_back() {
  if ((EUID == 0)) && [[ $(stat -c %u .) != 0 ]]; then
    find . -xdev -user root -exec chown --no-dereference --reference=. {} +
  fi
}
