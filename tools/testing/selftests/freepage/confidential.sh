#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
#
# A TDX or SEV-SNP guest must not report pages: what the host takes comes back
# unaccepted, and touching that ends the guest.

# shellcheck source=/dev/null
. "$(dirname "$0")/lib.sh"

need_refusing_guest() {
	dmesg | grep -qE 'Memory Encryption Features active:.*(TDX|SEV-SNP)' ||
		{ ktap_skip_all "neither a TDX nor a SEV-SNP guest"; exit "$KSFT_SKIP"; }
	[ -d "$SYSFS" ] ||
		{ ktap_skip_all "the C implementation does not refuse"; exit "$KSFT_SKIP"; }
	load_mock || {
		ktap_skip_all "freepage_test.ko was not built for this kernel"
		exit "$KSFT_SKIP"
	}
}

test_no_device_is_registered() {
	error=$(error_of 1 "$MOCK/register")
	expect "registering a device" "$error" = "Operation not supported"
	expect "a device is registered" "$(get "$MOCK/register")" -eq 0
	dmesg | grep -q 'free page reporting refused: this confidential guest' ||
		fail "the kernel log does not say why"
}

test_nothing_is_reported() {
	"$HERE/memory_hog" 64 || fail "cannot take 64 MiB"
	sleep 3
	expect "reports to the device" "$(get "$MOCK/reports")" -eq 0
}

begin
need_refusing_guest
run no_device_is_registered nothing_is_reported
