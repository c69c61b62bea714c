#!/usr/bin/env bash
# Builds the packages of a release in target/dist: a binary for each target, a .deb for x86_64, the npm package of the
# client library (scripts/npm.mjs builds only that one), and their checksums.
# The musl binaries are static; Rust includes everything that is needed to link them.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
dist=$target/dist
targets=("$@")
if [ $# = 0 ]; then
    targets=({x86_64,i686,aarch64}-unknown-linux-musl armv7-unknown-linux-gnueabihf)
fi

cargo_version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
version=$(git describe --tags --always --dirty 2>/dev/null || echo "$cargo_version")
# A Debian version begins with a digit, and a hyphen separates its revision.
deb_version=${version#v}
[[ $deb_version =~ ^[0-9]+\. ]] || deb_version=$cargo_version+git$deb_version
deb_version=${deb_version//-/+}

rm -rf "$dist"
mkdir -p "$dist"
for triple in "${targets[@]}"; do
    case $triple in
        *-musl*) linker=rust-lld ;;
        armv7-unknown-linux-gnueabihf) linker=arm-linux-gnueabihf-gcc ;;
        *) linker= ;;
    esac
    rustup --quiet target add "$triple"
    variable=${triple^^}
    env ${linker:+"CARGO_TARGET_${variable//-/_}_LINKER=$linker"} \
        cargo build --quiet --locked --release --bin noroshi --target "$triple"
    cp "$target/$triple/release/noroshi" "$dist/noroshi-$version-$triple"
    if [ "$triple" != x86_64-unknown-linux-musl ]; then
        continue
    elif command -v cargo-deb >/dev/null; then
        cargo deb --quiet --locked --no-build --no-strip --target "$triple" --deb-version "$deb_version" --output "$dist/"
    else
        echo "the .deb is not built, because cargo-deb is missing: cargo install cargo-deb" >&2
    fi
done

if command -v npm >/dev/null; then
    scripts/npm.mjs "$dist"
else
    echo "the npm package is not built, because npm is missing" >&2
fi

cd "$dist"
sha256sum noroshi* >SHA256SUMS
echo "| file | bytes |"
echo "|---|---|"
stat --format "| %n | %s |" noroshi*
