#!/bin/sh
# Checks what the system must bring before an environment can be made: Python >= 3.11 with venv,
# a C compiler, and the headers of Python and GMP (fastecdsa, a dependency of libp2p, has no wheel).
# Silent and 0 when all is there; otherwise names what is missing and the exact command that brings it, and exits 1.
#
#   check_system.sh            check
#   check_system.sh --python   print the Python to use: $PYTHON, or the first one new enough, or python3
set -u

new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

choose_python() {
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        if new_enough "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    echo "${PYTHON:-python3}"
}

# Which package manager this system has, by what it says of itself.
system_family() {
    if [ "$(uname -s)" = Darwin ]; then
        echo macos
        return
    fi
    ids=
    if [ -r "${OS_RELEASE:-/etc/os-release}" ]; then
        ids=$(. "${OS_RELEASE:-/etc/os-release}" && echo "${ID:-} ${ID_LIKE:-}")
    fi
    for id in $ids; do
        case $id in
            debian | ubuntu) echo debian; return ;;
            fedora | rhel | centos) echo fedora; return ;;
            arch) echo arch; return ;;
            alpine) echo alpine; return ;;
        esac
    done
    echo unknown
}

# The package that brings $2 on family $1.
package() {
    case $1:$2 in
        debian:python) echo python3 ;;
        debian:venv) echo python3-venv ;;
        debian:compiler) echo gcc libc6-dev ;;
        debian:python-headers) echo python3-dev ;;
        debian:gmp) echo libgmp-dev ;;
        fedora:python | fedora:venv) echo python3 ;;
        fedora:compiler) echo gcc ;;
        fedora:python-headers) echo python3-devel ;;
        fedora:gmp) echo gmp-devel ;;
        arch:python | arch:venv | arch:python-headers) echo python ;;
        arch:compiler) echo gcc ;;
        arch:gmp) echo gmp ;;
        alpine:python | alpine:venv) echo python3 ;;
        alpine:compiler) echo gcc musl-dev ;;
        alpine:python-headers) echo python3-dev ;;
        alpine:gmp) echo gmp-dev ;;
        macos:python | macos:venv | macos:python-headers) echo python@3.12 ;;
        macos:gmp) echo gmp ;;
    esac
}

install_command() {
    case $1 in
        debian) echo "sudo apt-get update && sudo apt-get install -y" ;;
        fedora) echo "sudo dnf install -y" ;;
        arch) echo "sudo pacman -S --needed" ;;
        alpine) echo "sudo apk add" ;;
        macos) echo "brew install" ;;
    esac
}

# Whether the compiler accepts this one line.
compiles() {
    echo "$1" | "$compiler" ${include:+-I"$include"} -x c -fsyntax-only - >/dev/null 2>&1
}

python=$(choose_python)
if [ "${1:-}" = --python ]; then
    echo "$python"
    exit 0
fi

missing=
if ! new_enough "$python"; then
    found=$("$python" --version 2>&1) || found="no $python"
    echo "missing: Python >= 3.11 (found: $found)" >&2
    missing="$missing python venv python-headers"
elif ! "$python" -c 'import venv, ensurepip' >/dev/null 2>&1; then
    echo "missing: the venv and ensurepip modules of $python" >&2
    missing="$missing venv"
fi

compiler=${CC:-$(command -v cc || command -v gcc || command -v clang || echo cc)}
include=
if ! compiles 'int main(void) { return 0; }'; then
    echo "missing: a C compiler (tried: $compiler)" >&2
    missing="$missing compiler python-headers gmp"
else
    if ! compiles '#include <gmp.h>'; then
        echo "missing: the headers of GMP (gmp.h)" >&2
        missing="$missing gmp"
    fi
    include=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))' 2>/dev/null)
    if [ -n "$include" ] && ! compiles '#include <Python.h>'; then
        echo "missing: the headers of $python (Python.h)" >&2
        missing="$missing python-headers"
    fi
fi
[ -n "$missing" ] || exit 0

family=$(system_family)
packages=
for need in $missing; do
    case $family:$need in
        macos:compiler) echo "run: xcode-select --install" >&2; continue ;;
        unknown:*) continue ;;
    esac
    for name in $(package "$family" "$need"); do
        case " $packages " in
            *" $name "*) ;;
            *) packages="$packages $name" ;;
        esac
    done
done
if [ "$family" = unknown ]; then
    echo "install these with your system's package manager: Python >= 3.11 with venv, a C compiler, GMP's headers" >&2
else
    [ -z "$packages" ] || echo "run: $(install_command "$family")$packages" >&2
fi
exit 1
