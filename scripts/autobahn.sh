#!/usr/bin/env bash
# Runs the Autobahn test suite (RFC 6455 conformance) against scripts/echo.rs, which uses noroshi's sessions and loop.
# Compares the result with scripts/autobahn.txt and exits with 1 if it differs. Takes some minutes.
#
# The suite needs CPython 2.7 with pip: python2.7 on the PATH or in pyenv, or the program that PYTHON27 names.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}

suite=autobahntestsuite==25.10.1
work=$(realpath -m "$target")/autobahn

python=${PYTHON27:-python2.7}
if ! "$python" -c "import pip" 2>/dev/null && command -v pyenv >/dev/null; then
    # The shims of pyenv find only the selected version.
    PYENV_VERSION=$(pyenv versions --bare | grep -m 1 "^2\.7\." || true)
    export PYENV_VERSION
fi
if ! "$python" -c "import pip, sys; assert sys.version_info[:2] == (2, 7)" 2>/dev/null; then
    echo "autobahn.sh: expected CPython 2.7 with pip, got $python; set PYTHON27=PATH" >&2
    exit 2
fi
# pip installs below target, and changes nothing else.
export PYTHONUSERBASE=$work/python
if ! [ -x "$PYTHONUSERBASE/bin/wstest" ]; then
    "$python" -m pip install --quiet --user --no-warn-script-location "$suite"
fi

cargo build --quiet --release --example echo
mkfifo "$work/stderr.$$"
"$target"/release/examples/echo --listen 127.0.0.1:0 --max-message 16M --max-rate 0 --log off 2>"$work/stderr.$$" &
echo_pid=$!
trap 'kill $echo_pid; rm -rf "$work/stderr.$$"' EXIT
read -r _ _ url <"$work/stderr.$$"

rm -rf "$work/reports"
cat >"$work/spec.json" <<SPEC
{
    "outdir": "$work/reports",
    "servers": [{"agent": "noroshi", "url": "$url"}],
    "cases": ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "9.*", "10.*"],
    "exclude-cases": [],
    "exclude-agent-cases": {}
}
SPEC
timeout 1800 "$PYTHONUSERBASE/bin/wstest" --mode fuzzingclient --spec "$work/spec.json" >"$work/wstest.log"

"$python" - "$work/reports/index.json" >"$work/autobahn.txt" <<'REPORT'
import json, sys
cases = json.load(open(sys.argv[1]))["noroshi"]
for case in sorted(cases, key=lambda case: [int(n) for n in case.split(".")]):
    print case, cases[case]["behavior"], cases[case]["behaviorClose"]
REPORT
diff -u scripts/autobahn.txt "$work/autobahn.txt"
echo "$(wc -l <scripts/autobahn.txt) cases as expected: $(cut -d' ' -f2 scripts/autobahn.txt | sort | uniq -c | xargs)"
