// SPDX-License-Identifier: GPL-2.0
/*
 * A page reporting device for tests: it takes what the kernel reports, checks
 * it, counts it and fails or dawdles on request. All files are in
 * /sys/kernel/debug/freepage_test.
 *
 * Times are in the unit of get_cycles(), or nanoseconds where the architecture
 * has no such counter. Under QEMU's "-icount shift=0" one cycle is one guest
 * instruction.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/atomic.h>
#include <linux/bitmap.h>
#include <linux/debugfs.h>
#include <linux/delay.h>
#include <linux/gfp.h>
#include <linux/hrtimer.h>
#include <linux/irqflags.h>
#include <linux/jiffies.h>
#include <linux/ktime.h>
#include <linux/list.h>
#include <linux/log2.h>
#include <linux/mm.h>
#include <linux/mmzone.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/nodemask.h>
#include <linux/page_reporting.h>
#include <linux/scatterlist.h>
#include <linux/sched.h>
#include <linux/seq_file.h>
#include <linux/string.h>
#include <linux/timex.h>
#include <linux/tracepoint.h>
#include <linux/vmalloc.h>
#include <linux/workqueue.h>

/* Exported, but declared only in mm/page_reporting.h. */
extern unsigned int page_reporting_order;

enum bad_kind {
	BAD_NENTS,	/* none, or more than the capacity */
	BAD_SHAPE,	/* offset, or a length that is no power of two pages */
	BAD_ALIGN,	/* page number not aligned to the length */
	BAD_ORDER,	/* smaller than the order in force */
	BAD_REF,	/* somebody holds a reference */
	BAD_BUDDY,	/* still on a free list */
	BAD_TWICE,	/* overlaps another entry of the same call */
	BAD_OVERLAP,	/* two calls at once */
	BAD_LATE,	/* call while no device is registered */
	NR_BAD,
};

static const char * const bad_names[NR_BAD] = {
	[BAD_NENTS]	= "nents",
	[BAD_SHAPE]	= "shape",
	[BAD_ALIGN]	= "align",
	[BAD_ORDER]	= "order",
	[BAD_REF]	= "ref",
	[BAD_BUDDY]	= "buddy",
	[BAD_TWICE]	= "twice",
	[BAD_OVERLAP]	= "overlap",
	[BAD_LATE]	= "late",
};

/* Every counter is a read-only file of the same name and set to 0 by "reset". */
enum counter {
	CNT_REPORTS,		/* report() calls that succeeded */
	CNT_ENTRIES,		/* their scatterlist entries */
	CNT_BYTES,		/* and bytes */
	CNT_AGAIN_BYTES,	/* of which had been reported before ("track") */
	CNT_FAILURES,		/* report() calls that were made to fail */
	CNT_MOST_ENTRIES,	/* in one call */
	CNT_PASSES,		/* runs of the work item */
	CNT_PASS_CYCLES,	/* time in it, but outside report() */
	CNT_LONGEST_GAP_CYCLES,	/* longest such stretch */
	CNT_LONGEST_IRQS_OFF_NS, /* bounds every hold of a zone lock ("meter_us") */
	NR_COUNTERS,
};

static const char * const counter_names[NR_COUNTERS] = {
	[CNT_REPORTS]		 = "reports",
	[CNT_ENTRIES]		 = "entries",
	[CNT_BYTES]		 = "bytes",
	[CNT_AGAIN_BYTES]	 = "again_bytes",
	[CNT_FAILURES]		 = "failures",
	[CNT_MOST_ENTRIES]	 = "most_entries",
	[CNT_PASSES]		 = "passes",
	[CNT_PASS_CYCLES]	 = "pass_cycles",
	[CNT_LONGEST_GAP_CYCLES] = "longest_gap_cycles",
	[CNT_LONGEST_IRQS_OFF_NS] = "longest_irqs_off_ns",
};

/* Written by the work item only, which never runs twice at a time. */
static u64 counters[NR_COUNTERS];
static atomic_t bad[NR_BAD];

/* Serializes everything that is written to the control files. */
static DEFINE_MUTEX(control_mutex);
static bool registered;
static unsigned int want_order = PAGE_REPORTING_ORDER_UNSPECIFIED;
static unsigned int want_capacity;

static atomic_t fail_calls = ATOMIC_INIT(0);
static u32 delay_us;
static u32 scribble;
static atomic_t inside = ATOMIC_INIT(0);

static int mock_report(struct page_reporting_dev_info *prdev,
		       struct scatterlist *sgl, unsigned int nents);

static struct page_reporting_dev_info prdev = { .report = mock_report };

static u64 mock_clock(void)
{
	cycles_t cycles = get_cycles();

	return cycles ? cycles : ktime_get_ns();
}

/*
 * Passes, seen from outside: the work item of every implementation is the one
 * in struct page_reporting_dev_info.
 */
static struct tracepoint *tp_start, *tp_end;
static bool in_pass;
static u64 pass_begin, pass_in_report, gap_begin;
static unsigned int pass_order;

/*
 * How long interrupts are off, as a zone lock is held only with them off: a
 * timer that is due every meter_us during a pass is so much late. It costs
 * time itself, so figures of time are taken without it.
 */
static u32 meter_us;
static struct hrtimer meter_timer;
static struct task_struct *pass_task;

static enum hrtimer_restart meter_tick(struct hrtimer *timer)
{
	s64 late = ktime_to_ns(ktime_sub(ktime_get(), hrtimer_get_expires(timer)));

	if (!in_pass)
		return HRTIMER_NORESTART;
	/* Others that run in between are not the pass. */
	if (current == pass_task && late > (s64)counters[CNT_LONGEST_IRQS_OFF_NS])
		counters[CNT_LONGEST_IRQS_OFF_NS] = late;
	hrtimer_set_expires(timer, ktime_add_us(ktime_get(), READ_ONCE(meter_us)));
	return HRTIMER_RESTART;
}

static void start_meter(void)
{
	if (READ_ONCE(meter_us))
		hrtimer_start(&meter_timer, us_to_ktime(READ_ONCE(meter_us)),
			      HRTIMER_MODE_REL_PINNED_HARD);
}

static void end_gap(u64 now)
{
	u64 gap = now - gap_begin;

	if (gap > counters[CNT_LONGEST_GAP_CYCLES])
		counters[CNT_LONGEST_GAP_CYCLES] = gap;
}

static void probe_start(void *data, struct work_struct *work)
{
	if (work != &prdev.work.work)
		return;

	pass_order = READ_ONCE(page_reporting_order);
	pass_in_report = 0;
	pass_task = current;
	in_pass = true;
	start_meter();
	pass_begin = mock_clock();
	gap_begin = pass_begin;
}

static void probe_end(void *data, struct work_struct *work,
		      work_func_t function)
{
	u64 now = mock_clock();

	if (work != &prdev.work.work || !in_pass)
		return;

	end_gap(now);
	counters[CNT_PASS_CYCLES] += now - pass_begin - pass_in_report;
	counters[CNT_PASSES]++;
	in_pass = false;
}

static void find_tracepoint(struct tracepoint *tp, void *priv)
{
	if (!strcmp(tp->name, "workqueue_execute_start"))
		tp_start = tp;
	else if (!strcmp(tp->name, "workqueue_execute_end"))
		tp_end = tp;
}

static void attach_probes(void)
{
	for_each_kernel_tracepoint(find_tracepoint, NULL);
	if (!tp_start || !tp_end) {
		pr_info("no workqueue tracepoints, so passes are not counted\n");
		tp_start = NULL;
		tp_end = NULL;
		return;
	}
	if (tracepoint_probe_register(tp_start, probe_start, NULL))
		tp_start = NULL;
	if (tracepoint_probe_register(tp_end, probe_end, NULL))
		tp_end = NULL;
}

static void detach_probes(void)
{
	if (tp_start)
		tracepoint_probe_unregister(tp_start, probe_start, NULL);
	if (tp_end)
		tracepoint_probe_unregister(tp_end, probe_end, NULL);
	tracepoint_synchronize_unregister();
}

/*
 * Two maps by page number, kept while "track" is on: pages that have been
 * reported, and pages that this module freed and that have not.
 */
static u32 track;
static unsigned long map_end;
static unsigned long *reported_map, *awaited_map;
static atomic64_t awaited_bytes = ATOMIC64_INIT(0);

static int alloc_maps(void)
{
	int nid;

	for_each_online_node(nid)
		map_end = max(map_end, pgdat_end_pfn(NODE_DATA(nid)));

	reported_map = vzalloc(BITS_TO_LONGS(map_end) * sizeof(long));
	awaited_map = vzalloc(BITS_TO_LONGS(map_end) * sizeof(long));
	return reported_map && awaited_map ? 0 : -ENOMEM;
}

static void clear_maps(void)
{
	bitmap_zero(reported_map, map_end);
	bitmap_zero(awaited_map, map_end);
	atomic64_set(&awaited_bytes, 0);
}

static void track_reported(unsigned long pfn, unsigned long nr)
{
	unsigned long end = min(pfn + nr, map_end);

	for (; pfn < end; pfn++) {
		if (test_and_set_bit(pfn, reported_map))
			counters[CNT_AGAIN_BYTES] += PAGE_SIZE;
		if (test_and_clear_bit(pfn, awaited_map))
			atomic64_sub(PAGE_SIZE, &awaited_bytes);
	}
}

static void track_allocated(struct page *page, unsigned int order)
{
	unsigned long pfn = page_to_pfn(page);
	unsigned long end = min(pfn + (1UL << order), map_end);

	if (!track)
		return;
	for (; pfn < end; pfn++) {
		clear_bit(pfn, reported_map);
		if (test_and_clear_bit(pfn, awaited_map))
			atomic64_sub(PAGE_SIZE, &awaited_bytes);
	}
}

static void track_freed(struct page *page, unsigned int order)
{
	unsigned long pfn = page_to_pfn(page);
	unsigned long end = min(pfn + (1UL << order), map_end);

	if (!track)
		return;
	for (; pfn < end; pfn++) {
		if (!test_and_set_bit(pfn, awaited_map))
			atomic64_add(PAGE_SIZE, &awaited_bytes);
	}
}

static void count_bad(enum bad_kind kind)
{
	atomic_inc(&bad[kind]);
}

static void check_entry(struct scatterlist *sgl, unsigned int nr,
			struct scatterlist *sg)
{
	unsigned long pfn = page_to_pfn(sg_page(sg));
	unsigned long pages = sg->length >> PAGE_SHIFT;
	unsigned int order = min(pass_order, READ_ONCE(page_reporting_order));
	unsigned long i;
	struct scatterlist *other;

	if (sg->offset || !pages || !is_power_of_2(sg->length)) {
		count_bad(BAD_SHAPE);
		return;
	}
	if (!IS_ALIGNED(pfn, pages)) {
		/* Its pages may be nobody's, or have no struct page. */
		count_bad(BAD_ALIGN);
		return;
	}
	/* An order that was changed during the pass may hold for part of it. */
	if (tp_start && pages < 1UL << order)
		count_bad(BAD_ORDER);
	if (PageBuddy(sg_page(sg)))
		count_bad(BAD_BUDDY);

	for (i = 0; i < pages; i++) {
		if (page_ref_count(pfn_to_page(pfn + i))) {
			count_bad(BAD_REF);
			break;
		}
	}

	for (other = sgl; nr--; other = sg_next(other)) {
		unsigned long o_pfn = page_to_pfn(sg_page(other));
		unsigned long o_pages = other->length >> PAGE_SHIFT;

		if (pfn < o_pfn + o_pages && o_pfn < pfn + pages) {
			count_bad(BAD_TWICE);
			break;
		}
	}
}

/*
 * The host may do anything to a reported page. Not so with options that rely
 * on the content of free pages, or unmap them.
 */
static void scribble_entry(struct scatterlist *sg)
{
	unsigned long i, pages = sg->length >> PAGE_SHIFT;

	if (page_poisoning_enabled_static() || debug_pagealloc_enabled_static() ||
	    want_init_on_free())
		return;
	for (i = 0; i < pages; i++) {
		void *addr = page_address(sg_page(sg) + i);

		if (addr)
			memset(addr, 0x5a, PAGE_SIZE);
	}
}

static int mock_report(struct page_reporting_dev_info *dev,
		       struct scatterlist *sgl, unsigned int nents)
{
	u64 begin = mock_clock();
	struct scatterlist *sg;
	unsigned int i;
	u64 end;
	int err = 0;

	if (in_pass)
		end_gap(begin);
	if (atomic_inc_return(&inside) != 1)
		count_bad(BAD_OVERLAP);
	if (!READ_ONCE(registered))
		count_bad(BAD_LATE);
	if (!nents || nents > dev->capacity)
		count_bad(BAD_NENTS);

	for_each_sg(sgl, sg, nents, i) {
		check_entry(sgl, i, sg);
		if (READ_ONCE(scribble))
			scribble_entry(sg);
	}
	if (nents > counters[CNT_MOST_ENTRIES])
		counters[CNT_MOST_ENTRIES] = nents;

	if (READ_ONCE(delay_us))
		fsleep(READ_ONCE(delay_us));

	if (atomic_dec_if_positive(&fail_calls) >= 0) {
		counters[CNT_FAILURES]++;
		err = -EIO;
	} else {
		counters[CNT_REPORTS]++;
		counters[CNT_ENTRIES] += nents;
		for_each_sg(sgl, sg, nents, i) {
			counters[CNT_BYTES] += sg->length;
			if (READ_ONCE(track))
				track_reported(page_to_pfn(sg_page(sg)),
					       sg->length >> PAGE_SHIFT);
		}
	}

	atomic_dec(&inside);
	end = mock_clock();
	pass_in_report += end - begin;
	gap_begin = end;
	return err;
}

/* Called with control_mutex held, or when no file is left. */
static void mock_unregister(void)
{
	page_reporting_unregister(&prdev);
	if (atomic_read(&inside))
		count_bad(BAD_LATE);
	WRITE_ONCE(registered, false);
}

static int register_set(void *data, u64 val)
{
	static struct page_reporting_dev_info second = { .report = mock_report };
	int err = 0;

	guard(mutex)(&control_mutex);
	if (val && registered) {
		/* Another device, so that the one in use stays as it is. */
		second.order = PAGE_REPORTING_ORDER_UNSPECIFIED;
		err = page_reporting_register(&second);
		if (!err)
			page_reporting_unregister(&second);
	} else if (val) {
		prdev.order = want_order;
		prdev.capacity = want_capacity;
		WRITE_ONCE(registered, true);
		err = page_reporting_register(&prdev);
		if (err)
			WRITE_ONCE(registered, false);
	} else if (registered) {
		mock_unregister();
	}
	return err;
}

static int register_get(void *data, u64 *val)
{
	*val = registered;
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(register_fops, register_get, register_set, "%llu\n");

static int order_set(void *data, u64 val)
{
	want_order = val;
	return 0;
}

static int order_get(void *data, u64 *val)
{
	*val = (s64)(int)want_order;
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE_SIGNED(order_fops, order_get, order_set, "%lld\n");

/* What the kernel made of it, once registered. */
static int capacity_set(void *data, u64 val)
{
	want_capacity = val;
	return 0;
}

static int capacity_get(void *data, u64 *val)
{
	*val = registered ? prdev.capacity : want_capacity;
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(capacity_fops, capacity_get, capacity_set, "%llu\n");

static int track_set(void *data, u64 val)
{
	guard(mutex)(&control_mutex);
	WRITE_ONCE(track, 0);
	clear_maps();
	WRITE_ONCE(track, !!val);
	return 0;
}

static int track_get(void *data, u64 *val)
{
	*val = track;
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(track_fops, track_get, track_set, "%llu\n");

static int reset_set(void *data, u64 val)
{
	unsigned int i;

	guard(mutex)(&control_mutex);
	for (i = 0; i < NR_COUNTERS; i++)
		counters[i] = 0;
	for (i = 0; i < NR_BAD; i++)
		atomic_set(&bad[i], 0);
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(reset_fops, NULL, reset_set, "%llu\n");

static int bad_get(void *data, u64 *val)
{
	unsigned int i;

	*val = 0;
	for (i = 0; i < NR_BAD; i++)
		*val += atomic_read(&bad[i]);
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(bad_fops, bad_get, NULL, "%llu\n");

static int bad_kinds_show(struct seq_file *m, void *v)
{
	unsigned int i;

	for (i = 0; i < NR_BAD; i++)
		seq_printf(m, "%s %d\n", bad_names[i], atomic_read(&bad[i]));
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(bad_kinds);

static int awaited_get(void *data, u64 *val)
{
	*val = atomic64_read(&awaited_bytes);
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(awaited_fops, awaited_get, NULL, "%llu\n");

static bool mock_busy(void)
{
	return registered && (delayed_work_pending(&prdev.work) ||
			      work_busy(&prdev.work.work));
}

static int busy_get(void *data, u64 *val)
{
	*val = mock_busy();
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(busy_fops, busy_get, NULL, "%llu\n");

/*
 * Waits for val milliseconds at most until no pass is running or due. Here and
 * not in the script, whose polling would allocate and free pages.
 */
static int wait_idle_set(void *data, u64 val)
{
	unsigned long deadline = jiffies + msecs_to_jiffies(val);

	while (mock_busy()) {
		if (time_after(jiffies, deadline))
			return -ETIMEDOUT;
		if (msleep_interruptible(5))
			return -EINTR;
	}
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(wait_idle_fops, NULL, wait_idle_set, "%llu\n");

/*
 * Memory that the tests let the module hold and free, so that it is known
 * which pages have to be reported.
 */
static struct page **held;
static unsigned long held_slots, held_left;
static unsigned int held_order;
static u32 hold_order;

#define HOLD_GFP (GFP_HIGHUSER_MOVABLE | __GFP_NORETRY | __GFP_NOWARN)

static void free_held_slot(unsigned long i)
{
	if (!held[i])
		return;
	track_freed(held[i], held_order);
	__free_pages(held[i], held_order);
	held[i] = NULL;
	held_left--;
}

/* Called with control_mutex held, or when no file is left. */
static void free_all_held(void)
{
	unsigned long i;

	for (i = 0; i < held_slots; i++)
		free_held_slot(i);
	vfree(held);
	held = NULL;
	held_slots = 0;
	held_left = 0;
}

/* "hold_mib": frees what is held, then takes so much in blocks of hold_order. */
static int hold_mib_set(void *data, u64 val)
{
	unsigned int order = READ_ONCE(hold_order);
	unsigned long i;

	if (order > MAX_PAGE_ORDER)
		return -EINVAL;

	guard(mutex)(&control_mutex);
	free_all_held();
	if (!val)
		return 0;

	held_slots = (val << (20 - PAGE_SHIFT)) >> order;
	held = vcalloc(held_slots, sizeof(*held));
	if (!held) {
		held_slots = 0;
		return -ENOMEM;
	}
	held_order = order;
	for (i = 0; i < held_slots; i++) {
		held[i] = alloc_pages(HOLD_GFP, order);
		if (!held[i]) {
			free_all_held();
			return -ENOMEM;
		}
		held_left++;
		track_allocated(held[i], order);
		cond_resched();
	}
	return 0;
}

static int hold_mib_get(void *data, u64 *val)
{
	*val = (held_left << held_order) >> (20 - PAGE_SHIFT);
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(hold_mib_fops, hold_mib_get, hold_mib_set, "%llu\n");

/* "hold_thin": keeps the first of every val pages and frees the others. */
static int hold_thin_set(void *data, u64 val)
{
	unsigned long block, page, kept = 0, per_block, nr;
	struct page **thin;

	guard(mutex)(&control_mutex);
	if (!held || val < 2 || val > 1UL << held_order || !is_power_of_2(val))
		return -EINVAL;

	per_block = (1UL << held_order) / val;
	nr = held_slots * per_block;
	thin = vcalloc(nr, sizeof(*thin));
	if (!thin)
		return -ENOMEM;

	for (block = 0; block < held_slots; block++) {
		struct page *head = held[block];

		split_page(head, held_order);
		for (page = 0; page < 1UL << held_order; page++) {
			if (page % val == 0) {
				thin[kept++] = head + page;
				continue;
			}
			track_freed(head + page, 0);
			__free_page(head + page);
		}
		cond_resched();
	}
	vfree(held);
	held = thin;
	held_slots = nr;
	held_left = nr;
	held_order = 0;
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(hold_thin_fops, NULL, hold_thin_set, "%llu\n");

/* "hold_drop": frees val of the held blocks, strewn over all of them. */
static int hold_drop_set(void *data, u64 val)
{
	/* Prime, so every slot is met when it does not divide their number. */
	const unsigned long stride = 7919;
	static unsigned long at;
	unsigned long tries;

	guard(mutex)(&control_mutex);
	if (val > held_left || !(held_slots % stride))
		return -EINVAL;
	for (tries = 0; val && tries < held_slots; tries++) {
		at = (at + stride) % held_slots;
		if (!held[at])
			continue;
		free_held_slot(at);
		val--;
	}
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(hold_drop_fops, NULL, hold_drop_set, "%llu\n");

/*
 * "kick": makes a pass due by freeing blocks of order val; so many that they do
 * not stay on a per-CPU list.
 */
static int kick_set(void *data, u64 val)
{
	struct page *page, *next;
	unsigned int nr;
	LIST_HEAD(pages);
	int err = 0;

	if (val > MAX_PAGE_ORDER)
		return -EINVAL;

	guard(mutex)(&control_mutex);
	for (nr = max(1024 >> val, 1); nr; nr--) {
		page = alloc_pages(HOLD_GFP, val);
		if (!page) {
			err = -ENOMEM;
			break;
		}
		list_add(&page->lru, &pages);
	}
	list_for_each_entry_safe(page, next, &pages, lru) {
		list_del(&page->lru);
		__free_pages(page, val);
	}
	return err;
}
DEFINE_DEBUGFS_ATTRIBUTE(kick_fops, NULL, kick_set, "%llu\n");

static int hold_blocks_get(void *data, u64 *val)
{
	*val = held_left;
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(hold_blocks_fops, hold_blocks_get, NULL, "%llu\n");

/*
 * "pairs": writing an order allocates and frees 100 times 1000 blocks of it,
 * one after the other; reading gives the time of the quickest 1000.
 */
static u64 pairs_cycles;

static int pairs_set(void *data, u64 val)
{
	const gfp_t gfp = GFP_NOWAIT | __GFP_MOVABLE | __GFP_NOWARN;
	unsigned int round, i;
	u64 best = U64_MAX;

	if (val > MAX_PAGE_ORDER)
		return -EINVAL;

	guard(mutex)(&control_mutex);
	pairs_cycles = 0;
	for (round = 0; round < 100; round++) {
		unsigned long flags;
		u64 begin, end;

		/* An interrupt would be counted as allocation. */
		local_irq_save(flags);
		begin = mock_clock();
		for (i = 0; i < 1000; i++) {
			struct page *page = alloc_pages(gfp, val);

			if (!page)
				break;
			__free_pages(page, val);
		}
		end = mock_clock();
		local_irq_restore(flags);
		if (i < 1000)
			return -ENOMEM;
		best = min(best, end - begin);
		cond_resched();
	}
	pairs_cycles = best;
	return 0;
}

static int pairs_get(void *data, u64 *val)
{
	*val = pairs_cycles;
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(pairs_fops, pairs_get, pairs_set, "%llu\n");

static struct dentry *dir;

static int __init freepage_test_init(void)
{
	unsigned int i;
	int err;

	err = alloc_maps();
	if (err) {
		vfree(reported_map);
		vfree(awaited_map);
		return err;
	}
	hrtimer_setup(&meter_timer, meter_tick, CLOCK_MONOTONIC,
		      HRTIMER_MODE_REL_PINNED_HARD);
	attach_probes();

	dir = debugfs_create_dir("freepage_test", NULL);
	debugfs_create_file("register", 0600, dir, NULL, &register_fops);
	debugfs_create_file("order", 0600, dir, NULL, &order_fops);
	debugfs_create_file("capacity", 0600, dir, NULL, &capacity_fops);
	debugfs_create_atomic_t("fail", 0600, dir, &fail_calls);
	debugfs_create_atomic_t("inside", 0400, dir, &inside);
	debugfs_create_u32("delay_us", 0600, dir, &delay_us);
	/* A coarse timer would be late by a tick. */
	if (hrtimer_resolution < NSEC_PER_USEC)
		debugfs_create_u32("meter_us", 0600, dir, &meter_us);
	debugfs_create_u32("scribble", 0600, dir, &scribble);
	debugfs_create_file("track", 0600, dir, NULL, &track_fops);
	debugfs_create_file("reset", 0200, dir, NULL, &reset_fops);
	debugfs_create_file("wait_idle", 0200, dir, NULL, &wait_idle_fops);
	debugfs_create_file("busy", 0400, dir, NULL, &busy_fops);
	debugfs_create_file("bad", 0400, dir, NULL, &bad_fops);
	debugfs_create_file("bad_kinds", 0400, dir, NULL, &bad_kinds_fops);
	debugfs_create_file("awaited_bytes", 0400, dir, NULL, &awaited_fops);
	debugfs_create_u32("hold_order", 0600, dir, &hold_order);
	debugfs_create_file("hold_mib", 0600, dir, NULL, &hold_mib_fops);
	debugfs_create_file("hold_thin", 0200, dir, NULL, &hold_thin_fops);
	debugfs_create_file("hold_drop", 0200, dir, NULL, &hold_drop_fops);
	debugfs_create_file("kick", 0200, dir, NULL, &kick_fops);
	debugfs_create_file("hold_blocks", 0400, dir, NULL, &hold_blocks_fops);
	debugfs_create_file("pairs", 0600, dir, NULL, &pairs_fops);
	for (i = 0; i < NR_COUNTERS; i++)
		debugfs_create_u64(counter_names[i], 0400, dir, &counters[i]);
	return 0;
}

static void __exit freepage_test_exit(void)
{
	debugfs_remove(dir);
	if (registered)
		mock_unregister();
	detach_probes();
	in_pass = false;
	hrtimer_cancel(&meter_timer);
	free_all_held();
	vfree(reported_map);
	vfree(awaited_map);
}

module_init(freepage_test_init);
module_exit(freepage_test_exit);
MODULE_DESCRIPTION("Page reporting device for tests");
MODULE_LICENSE("GPL");
