#!/bin/sh
# Builds the object and its Go; reproducible in any folder.
set -e
cd "$(dirname "$0")"
exec go tool bpf2go -go-package fault -cc clang-19 -strip llvm-strip-19 -target bpfel -type rule \
	-cflags "-O2 -g -Wall -Werror -mcpu=v3 -fdebug-compilation-dir=. -ffile-prefix-map=$PWD=." \
	Fault fault.c -- "-I/usr/include/$(uname -m)-linux-gnu"
