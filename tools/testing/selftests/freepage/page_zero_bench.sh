#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
#
# What it takes to get memory that is zero, cleared when it is used or before: one
# line for each figure. With QEMU's "-icount shift=0,sleep=off" and one CPU a ns
# is an instruction, so that the figures are the same in every run. Wants 3 GiB of
# memory, of one node.
#
# page_zero_bench.sh PART...: faults (to lock 1 GiB) or small (what it costs where
# it does not help). A kernel without page_zero has the figures to compare with.

# shellcheck source=/dev/null
. "$(dirname "$0")/lib.sh"

ZERO=/sys/kernel/mm/page_zero
THP=/sys/kernel/mm/transparent_hugepage
CLEARING="instructions and bytes"

# emit CASE METRIC UNIT VALUE
emit() {
	printf 'bench: {"bench":"zero","case":"%s","metric":"%s","unit":"%s","value":%s}\n' \
		"$1" "$2" "$3" "$4"
}

give_up() {
	echo "bench: $*" >&2
	exit "$KSFT_FAIL"
}

# ratio A B: A / B with three digits after the point.
ratio() {
	echo "$(($1 / $2)).$(printf %03d $((($1 % $2) * 1000 / $2)))"
}

# time_of CASE METRIC KIND: to lock 1 GiB, and to unmap it
time_of() {
	times=$("$HERE/zero_check" time "$3" 1024) || give_up "$1: $times"
	emit "$1" "$2" "$CLEARING" "${times% *}"
	emit "$1" "$2, and then unmap" "$CLEARING" "${times#* }"
}

# lock CASE KIND: "lock" is without page_zero, or with it and memory at hand.
lock() {
	# The first time makes page tables and the like.
	"$HERE/zero_check" time "$2" 1024 > /dev/null || give_up "$1: cannot lock 1 GiB"
	if [ -d $ZERO ]; then
		time_of "$1" "lock, not zeroed" "$2"
		put 1T $ZERO/flush
	fi
	time_of "$1" "lock" "$2"
}

bench_faults() {
	# Whatever a large free leaves on the lists of the CPU is dirty.
	keep_off_pcp_lists
	lock "1 GiB, 4K pages" small
	echo never > $THP/hugepages-2048kB/enabled
	echo madvise > $THP/hugepages-64kB/enabled
	lock "1 GiB, folios of 64 KiB" huge
	echo never > $THP/hugepages-64kB/enabled
	echo madvise > $THP/hugepages-2048kB/enabled
	lock "1 GiB, huge pages" huge
	pool=/sys/kernel/mm/hugepages/hugepages-2048kB
	echo 512 > $pool/nr_hugepages
	[ "$(get $pool/nr_hugepages)" -eq 512 ] || give_up "no 512 huge pages in the pool"
	[ ! -e $pool/zeroed_hugepages ] || put 512 $pool/zeroed_hugepages
	time_of "1 GiB, a pool of hugetlb" lock hugetlb
	echo 0 > $pool/nr_hugepages
}

pairs() {
	for order in 0 2 9; do
		# The first time fills caches and per-CPU lists.
		for _ in 1 2; do
			echo "$order" > "$MOCK/pairs" ||
				give_up "cannot allocate blocks of order $order"
		done
		emit "order $order: allocate and free" "$1" instructions \
			"$(ratio "$(get "$MOCK/pairs")" 1000)"
	done
}

of_order_0() { cut -d' ' -f1 "$ZERO/$1"; }

# hit_rate CASE: the part of single pages that need not be cleared, a second after
# a load that used most of the memory in pieces of all sizes.
hit_rate() {
	put 1 $ZERO/enabled
	sleep 2
	"$HERE/zero_check" mixed 1024 3 2 > /dev/null || give_up "a page was not zero"
	sleep 1
	hits=$(of_order_0 hits)
	misses=$(of_order_0 misses)
	"$HERE/zero_check" pages 65536 > /dev/null || give_up "a page was not zero"
	hits=$(($(of_order_0 hits) - hits))
	misses=$(($(of_order_0 misses) - misses))
	emit "256 MiB of 4K pages, a second after a mixed load, $1" "need not be cleared" \
		percent "$(ratio $((hits * 100)) $((hits + misses)))"
	put 0 $ZERO/enabled
}

hit_rates() {
	hit_rate "by default"
	put 100 $ZERO/high_percent
	put 100 $ZERO/low_percent
	put 100 $ZERO/cpu_percent
	put 0 $ZERO/rate_mib
	hit_rate "all of the memory zeroed"
}

bench_small() {
	load_mock || give_up "freepage_test.ko cannot be loaded: build it for this kernel"
	pairs "page_zero off"
	[ -d $ZERO ] || return
	put 4096 $ZERO/flush
	pairs "page_zero in use"
	hit_rates
}

begin > /dev/null
# shellcheck disable=SC2086
for part in $ONLY; do
	case $part in
	faults|small) "bench_$part" ;;
	*) give_up "no part '$part': there are faults and small" ;;
	esac
done
echo "bench: done"
