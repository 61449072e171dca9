# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=sh
#
# What the freepage tests share. Each test is a function test_NAME that runs in
# a subshell and ends itself with fail or skip when there is reason to.

# Arguments of a test script name the tests to run; without any, all are run.
ONLY=$*

HERE=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=/dev/null
. "$HERE/../kselftest/ktap_helpers.sh"

MOCK=/sys/kernel/debug/freepage_test
# Another treatment, which leaves pages as they are (CONFIG_FREEPAGE_TEST).
TREATMENT=/sys/kernel/debug/freepage_treatment
PARAMS=/sys/module/page_reporting/parameters
# shellcheck disable=SC2034
SYSFS=/sys/kernel/mm/page_reporting
BALLOON_DRIVER=/sys/bus/virtio/drivers/virtio_balloon
MARK="freepage selftest $0 $$"

note() { echo "# $*"; }
fail() { echo "# $*"; exit "$KSFT_FAIL"; }
skip() { echo "# SKIP: $*"; exit "$KSFT_SKIP"; }

# get FILE: its content. Not the shell's read, which reads byte by byte: sysctls
# have nothing after the first one.
get() { cat "$1" || fail "cannot read $1"; }

# put VALUE FILE: a write that has to succeed.
put() {
	echo "$1" > "$2" || fail "cannot write '$1' to $2"
}

# error_of VALUE FILE: what the kernel says to that write; empty if nothing.
error_of() {
	error=$( (echo "$1" > "$2") 2>&1)
	echo "${error##*: }"
}

# expect WHAT TEST...: fails with the values shown unless [ TEST... ].
expect() {
	what=$1
	shift
	[ "$@" ] || fail "$what: expected $*"
}

# wait_for SECONDS COMMAND...: until it succeeds.
wait_for() {
	left=$(($1 * 10))
	shift
	until "$@"; do
		[ "$left" -gt 0 ] || return 1
		left=$((left - 1))
		sleep 0.1
	done
}

# free_bytes FROM [BELOW]: bytes in free blocks of these orders. Small zones are
# left out: their free memory never exceeds the watermark for a full report.
free_bytes() {
	awk -v from="$1" -v below="${2:-99}" '
		$4 != "DMA" {
			size = 4096
			for (i = 5; i <= NF; i++) {
				if (i - 5 >= from && i - 5 < below)
					sum += $i * size
				size *= 2
			}
		}
		END { printf "%.0f\n", sum }' /proc/buddyinfo
}

# A kernel that looks for mistakes of its own is slower by far. It gets smaller loads
# than one whose memory is the subject.
is_debug_kernel() { [ -e /proc/lockdep ]; }

mount_debugfs() {
	grep -q ' /sys/kernel/debug debugfs ' /proc/mounts ||
		mount -t debugfs none /sys/kernel/debug 2> /dev/null
}

need_root() {
	[ "$(id -u)" -eq 0 ] || { ktap_skip_all "needs root"; exit "$KSFT_SKIP"; }
}

need_reporting() {
	[ -d "$PARAMS" ] ||
		{ ktap_skip_all "kernel without CONFIG_PAGE_REPORTING"; exit "$KSFT_SKIP"; }
}

balloons() {
	for device in "$BALLOON_DRIVER"/virtio*; do
		[ -e "$device" ] && basename "$device"
	done
}

# Only one device can be registered: the balloon has to leave for the mock.
unbind_balloons() {
	for device in $(balloons); do
		put "$device" "$BALLOON_DRIVER/unbind"
	done
}

# All that have no driver, whoever unbound them.
rebind_balloons() {
	for path in /sys/bus/virtio/devices/*; do
		[ -e "$path/driver" ] || [ "$(cat "$path/device")" != 0x0005 ] ||
			put "$(basename "$path")" "$BALLOON_DRIVER/bind"
	done 2> /dev/null
}

need_balloon() {
	[ -n "$(balloons)" ] ||
		{ ktap_skip_all "no virtio balloon"; exit "$KSFT_SKIP"; }
}

load_mock() {
	mount_debugfs
	[ -d "$MOCK" ] && return
	insmod "$HERE/test_module/freepage_test.ko" 2> /dev/null ||
		modprobe -q freepage_test 2> /dev/null
	[ -d "$MOCK" ]
}

# Pages on per-CPU lists are not reported, and after a large free an eighth of
# the zone may be there for a while.
PCP=/proc/sys/vm/percpu_pagelist_high_fraction
keep_off_pcp_lists() {
	[ ! -w "$PCP" ] || echo 1000000 > "$PCP"
}

need_mock() {
	load_mock || {
		ktap_skip_all "freepage_test.ko was not built for this kernel"
		exit "$KSFT_SKIP"
	}
	had_balloon=$(balloons)
	unbind_balloons
	keep_off_pcp_lists
	put 100 "$PARAMS/page_reporting_delay_ms"
	trial=$(error_of 1 "$MOCK/register")
	[ -z "$trial" ] || [ -z "$had_balloon" ] ||
		ktap_exit_fail_msg "cannot register a device after the balloon left: $trial"
	[ -z "$trial" ] || {
		ktap_skip_all "cannot register a device: $trial"
		exit "$KSFT_SKIP"
	}
	put 0 "$MOCK/register"
}

# reset_mock ORDER: no device is registered, and none of what an earlier test set
# is left.
reset_mock() {
	put 0 "$MOCK/register"
	put "$1" "$PARAMS/page_reporting_order"
	put 100 "$PARAMS/page_reporting_delay_ms"
	put 0 "$MOCK/fail"
	put 0 "$MOCK/delay_us"
	put 0 "$MOCK/scribble"
	put 0 "$MOCK/hold_mib"
	put 0 "$MOCK/capacity"
	put 1 "$MOCK/track"
	put 1 "$MOCK/reset"
}

# start_mock ORDER: registers it afresh and waits until all has been reported.
start_mock() {
	reset_mock "$1"
	error=$(error_of 1 "$MOCK/register")
	case $error in
	"") settle ;;
	# confidential.sh tests that it is.
	"Operation not supported") skip "reporting is refused in this guest" ;;
	*) fail "cannot register a device: $error" ;;
	esac
}

# settle: waits until no pass runs or is due.
settle() {
	error=$(error_of 60000 "$MOCK/wait_idle")
	[ -z "$error" ] || fail "reporting does not become idle in 60 s: $error"
}

# hold_off: no pass begins for an hour, and one that runs comes to its end. What is
# due then keeps the module busy.
hold_off() {
	put 3600000 "$PARAMS/page_reporting_delay_ms"
	error_of 5000 "$MOCK/wait_idle" > /dev/null
}

# hold MIB ORDER: lets the module allocate so much in blocks of that order. What
# it frees again counts as awaited until it has been reported.
hold() {
	put "$2" "$MOCK/hold_order"
	error=$(error_of "$1" "$MOCK/hold_mib")
	[ -z "$error" ] || skip "cannot get $1 MiB in blocks of order $2: $error"
}

drop_all() { put 0 "$MOCK/hold_mib"; }

# fragment BLOCKS: until defragment every 32nd page is in use, so that other blocks
# that are free have 64 KiB at most. What the module did not get becomes huge pages,
# but for so many. False if that cannot be done.
RESERVE=/proc/sys/vm/min_free_kbytes
HUGE_PAGES=/proc/sys/vm/nr_hugepages
COMPACT_UNEVICTABLE=/proc/sys/vm/compact_unevictable_allowed
fragment() {
	[ -w $HUGE_PAGES ] || return
	load_mock || return
	# There are just as many free blocks as are freed at the end: none comes from
	# a list of a CPU, or from compaction, of the files of a root in ramfs.
	keep_off_pcp_lists
	echo 0 > $COMPACT_UNEVICTABLE
	reserve=$(get $RESERVE)
	echo 8192 > $RESERVE
	echo 9 > "$MOCK/hold_order"
	mib=$(awk '/^MemFree:/ { print int($2 / 1024) }' /proc/meminfo)
	until echo "$mib" > "$MOCK/hold_mib" || [ "$mib" -eq 0 ]; do
		mib=$((mib - mib / 64 - 1))
	done 2> /dev/null
	# What is left is for the next command.
	echo 64 > $RESERVE
	echo 32 > "$MOCK/hold_thin"
	echo "$reserve" > $RESERVE
	echo 64 > $HUGE_PAGES
	[ "$mib" -gt 0 ] && echo $(($(get $HUGE_PAGES) - $1)) > $HUGE_PAGES
}

defragment() {
	echo 0 > $HUGE_PAGES
	echo 1 > $COMPACT_UNEVICTABLE
	[ -z "$OLD_PCP" ] || echo "$OLD_PCP" > "$PCP"
	[ ! -d "$MOCK" ] || rmmod freepage_test
}

# kick ORDER: makes a pass due by freeing some blocks of it.
kick() { put "$1" "$MOCK/kick"; }

expect_no_bad() {
	[ "$(get "$MOCK/bad")" -eq 0 ] && return
	fail "bad entries reported: $(grep -v ' 0$' "$MOCK/bad_kinds" | tr '\n' ' ')"
}

# The blocks that memory goes offline by.
MEMORY=/sys/devices/system/memory

# movable_blocks: those that have to be able to go offline.
movable_blocks() {
	grep -lx Movable $MEMORY/memory*/valid_zones 2> /dev/null | sed 's,/valid_zones,,'
}

# offline BLOCK: what the kernel says against it; empty if nothing. It tries for ever
# if a page never becomes free, and takes those of small slabs for pages that do: they
# have no references.
offline() {
	error=$(timeout 60 sh -c "echo offline > $1/state" 2>&1) && return
	error=${error##*: }
	echo "${error:-not all of it is free after 60 s}"
}

# Anything that the kernel complained about since the test began, or in all that
# is left of its log.
expect_clean_log() {
	complaints=$(dmesg | awk -v mark="$MARK" '
		index($0, mark) { complaints = "" }
		/BUG:|WARNING:|Oops|general protection|Bad page|KASAN|UBSAN/ ||
		/INFO: (possible|task|rcu)|stall|deadlock/ {
			complaints = complaints "# " $0 "\n"
		}
		END { printf "%s", complaints }')
	[ -z "$complaints" ] || fail "the kernel log has
$complaints"
}

# Called at exit, so that the next test finds what this one found.
restore() {
	[ -z "$LOAD" ] || kill "$LOAD" 2> /dev/null
	if [ -d "$TREATMENT" ]; then
		echo 0 > "$TREATMENT/sleep_ms"
		echo 0 > "$TREATMENT/fail"
		echo 0 > "$TREATMENT/enabled"
	fi
	if [ -d "$MOCK" ]; then
		echo 0 > "$MOCK/fail"
		echo 0 > "$MOCK/delay_us"
		rmmod freepage_test
	fi
	if [ -d "$PARAMS" ]; then
		[ "$OLD_ORDER" -lt 0 ] ||
			echo "$OLD_ORDER" > "$PARAMS/page_reporting_order"
		echo "$OLD_DELAY" > "$PARAMS/page_reporting_delay_ms"
	fi
	[ -z "$OLD_ENABLED" ] || echo "$OLD_ENABLED" > "$SYSFS/enabled"
	[ -z "$OLD_ADAPTIVE" ] || echo "$OLD_ADAPTIVE" > "$SYSFS/adaptive"
	[ -z "$OLD_PCP" ] || echo "$OLD_PCP" > "$PCP"
	rebind_balloons
}

begin() {
	LOAD=
	OLD_ORDER=-1
	OLD_PCP=
	OLD_ENABLED=
	OLD_ADAPTIVE=
	[ ! -w "$PCP" ] || OLD_PCP=$(get "$PCP")
	[ ! -w "$SYSFS/enabled" ] || OLD_ENABLED=$(get "$SYSFS/enabled")
	# With the delay that is set, and no run of the work item that only looks whether
	# a pass is due: those that want it turn it on.
	if [ -w "$SYSFS/adaptive" ]; then
		OLD_ADAPTIVE=$(get "$SYSFS/adaptive")
		echo 0 > "$SYSFS/adaptive"
	fi
	need_root
	[ ! -w /dev/kmsg ] || echo "$MARK" > /dev/kmsg
	if [ -d "$PARAMS" ]; then
		OLD_ORDER=$(get "$PARAMS/page_reporting_order")
		OLD_DELAY=$(get "$PARAMS/page_reporting_delay_ms")
	fi
	trap restore EXIT
	trap 'exit 1' INT TERM
	ktap_print_header
}

# run NAME...: the plan, the tests and the end.
run() {
	# shellcheck disable=SC2086
	[ -z "$ONLY" ] || set -- $ONLY
	ktap_set_plan $#
	for name in "$@"; do
		began=$(date +%s)
		# Its traps are the parent's.
		(trap - EXIT; "test_$name")
		result=$?
		took=$(($(date +%s) - began))
		[ $took -lt 10 ] || note "$name took $took s"
		case $result in
		"$KSFT_PASS") ktap_test_pass "$name" ;;
		"$KSFT_SKIP") ktap_test_skip "$name" ;;
		*) ktap_test_fail "$name" ;;
		esac
	done
	ktap_finished
}
