#!/usr/bin/env bash
# Looks for known vulnerabilities in what the modules of this repository use (tools/ itself is not shipped).
#
#	tools/vuln.sh [-db URL]
#
# Run it by hand, before a release: it asks a database on the network that is not reachable from everywhere, so it is
# no gate of .ci/run. It succeeds only when every module was looked at and nothing was found.
set -euo pipefail
shopt -s inherit_errexit
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export GOWORK=off

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
go -C tools build -o "$scratch/" golang.org/x/vuln/cmd/govulncheck

modules=$(git ls-files --cached --others --exclude-standard -- ':(glob)**/go.mod' | xargs -n1 dirname | grep -vx tools)
failed=0
for m in $modules; do
	echo "## module $m"
	status=0
	"$scratch/govulncheck" -C "$m" "$@" -test ./... || status=$?
	case $status in
	0) ;;
	3) # govulncheck's exit status for "found"
		echo "vuln: module $m is AFFECTED, see above" >&2
		failed=1
		;;
	*)
		echo "vuln: module $m was NOT CHECKED (govulncheck ended with $status): is the database reachable, does the code compile?" >&2
		failed=1
		;;
	esac
done
if ((failed)); then exit 1; fi
echo "vuln: nothing found in: $(xargs <<<"$modules")"
