// SPDX-License-Identifier: GPL-2.0
/*
 * Unaccepted memory, the part in C: the blocks of zones, what view.rs cannot
 * call by itself, modes, the background, sysfs.
 *
 * Which memory is accepted, when, and by whom, is decided in the .rs files.
 *
 * Lock order: zone->lock is taken alone. No memory is accepted with it held.
 */
#define pr_fmt(fmt) "unaccepted_memory: " fmt

#include <linux/atomic.h>
#include <linux/cc_platform.h>
#include <linux/completion.h>
#include <linux/cpu.h>
#include <linux/crash_dump.h>
#include <linux/delay.h>
#include <linux/efi.h>
#include <linux/freezer.h>
#include <linux/irq_work.h>
#include <linux/jump_label.h>
#include <linux/kobject.h>
#include <linux/kthread.h>
#include <linux/memory.h>
#include <linux/memory_hotplug.h>
#include <linux/mm.h>
#include <linux/nmi.h>
#include <linux/sched/clock.h>
#include <linux/slab.h>
#include <linux/suspend.h>
#include <linux/syscore_ops.h>
#include <linux/sysfs.h>
#include <linux/wait.h>
#include <linux/workqueue.h>
#include <asm/unaccepted_memory.h>

#include "../../internal.h"
#include "../bytes.h"
#include "../zeroing/page_zero.h"
#include "unaccepted.h"

#define CREATE_TRACE_POINTS
#define CREATE_RUST_TRACE_POINTS
#include <trace/events/unaccepted_memory.h>

#define BLOCK_PAGES	(1UL << UNACCEPTED_BLOCK_ORDER)
#define BLOCK_BYTES	(PAGE_SIZE << UNACCEPTED_BLOCK_ORDER)

/* The table */

/**
 * unaccepted_table - the firmware's table
 *
 * Return: the table, or NULL if there is none, or none that can be used.
 */
struct efi_unaccepted_memory *unaccepted_table(void)
{
	return efi_get_unaccepted_table();
}

/* What physical addresses are below */
u64 unaccepted_phys_limit(void)
{
	return 1ULL << boot_cpu_data.x86_phys_bits;
}

/* Calls */

bool unaccepted_is_tdx(void)
{
	return cpu_feature_enabled(X86_FEATURE_TDX_GUEST);
}

/**
 * unaccepted_call - accept 4 KiB or 2 MiB
 * @start: physical address, aligned to the size
 * @large: 2 MiB. SEV-SNP: always
 *
 * Context: any but NMI; the caller has the claim of the unit.
 *
 * Return: what the TDX module answers. An SEV-SNP guest does not survive a
 * failure.
 */
u64 unaccepted_call(phys_addr_t start, bool large)
{
	if (unaccepted_is_tdx())
		return tdx_accept_page(start, large ? TDX_PS_2M : TDX_PS_4K);
	if (!cc_platform_has(CC_ATTR_GUEST_SEV_SNP))
		panic("Cannot accept memory: unknown platform\n");
	snp_accept_memory(start, start + PMD_SIZE);
	return 0;
}

void unaccepted_fail(phys_addr_t start, bool large, u64 status)
{
	phys_addr_t end = start + (large ? PMD_SIZE : PAGE_SIZE) - 1;

	panic("TDX: Failed to accept memory [mem %pa-%pa] at level %d (%s): status %#llx\n",
	      &start, &end, large, large ? "2M" : "4K", status);
}

unsigned long unaccepted_irq_save(void)
{
	unsigned long flags;

	local_irq_save(flags);
	return flags;
}

void unaccepted_irq_restore(unsigned long flags)
{
	local_irq_restore(flags);
}

u64 unaccepted_clock(void)
{
	return local_clock();
}

/* Whether the caller can be seen to be allowed to sleep; false may be wrong. */
bool unaccepted_may_sleep(void)
{
	return system_state >= SYSTEM_SCHEDULING && preemptible() &&
	       !rcu_preempt_depth();
}

bool unaccepted_booting(void)
{
	return system_state < SYSTEM_RUNNING;
}

/**
 * unaccepted_relax - let another CPU come to the end of its section
 * @time: how often this was called before, in a row
 * @may_sleep: the caller may sleep
 */
void unaccepted_relax(unsigned int time, bool may_sleep)
{
	if (may_sleep && time >= 100)
		usleep_range(100, 200);
	else
		cpu_relax();
}

/* Between two sections. */
void unaccepted_breathe(bool may_sleep)
{
	touch_softlockup_watchdog();
	if (may_sleep)
		cond_resched();
}

/* Blocks */

/**
 * struct unaccepted_zone - unaccepted memory of a zone
 * @blocks: blocks of a run that was taken apart, the highest one first. They
 *	carry no mark. Protected by zone->lock
 * @flying: blocks that somebody accepts now, in no order. Likewise
 * @pending: number of blocks of the zone that are not in the free lists
 * @in_flight: number of blocks in @flying, or about to be in the free lists
 * @landing: number of the latter
 * @landed: how many blocks have got to the free lists, ever; it wraps
 */
struct unaccepted_zone {
	struct list_head blocks;
	struct list_head flying;
	atomic_t pending;
	atomic_t in_flight;
	atomic_t landing;
	atomic_t landed;
};

static struct unaccepted_zone unaccepted_zones[MAX_NUMNODES][MAX_NR_ZONES];

/* Number of blocks in all zones that are not in the free lists */
static atomic_long_t unaccepted_blocks;

/* No block may be added: unaccepted_left has been turned off, or is about to. */
static bool unaccepted_closed;

/* All that boot adds has been added. */
static bool unaccepted_settled __read_mostly;

DEFINE_STATIC_KEY_TRUE(unaccepted_left);

/*
 * In the mode on_alloc: units in the free lists that are unaccepted. More than there
 * are until boot has added all.
 */
static atomic_long_t unaccepted_units = ATOMIC_LONG_INIT(LONG_MAX / 2);

DEFINE_STATIC_KEY_FALSE(unaccepted_on_alloc);

static DECLARE_WAIT_QUEUE_HEAD(unaccepted_landing);

/* Whoever lands a block may hold locks that a wake-up takes, as the runqueue's. */
static void unaccepted_wake(struct irq_work *work)
{
	wake_up_all(&unaccepted_landing);
}
static DEFINE_IRQ_WORK(unaccepted_wake_irq_work, unaccepted_wake);

static struct unaccepted_zone *unaccepted_zone(struct zone *zone)
{
	return &unaccepted_zones[zone_to_nid(zone)][zone_idx(zone)];
}

/* The lists are needed before anything could initialize them. */
static struct list_head *unaccepted_list(struct list_head *list)
{
	if (unlikely(!list->next))
		INIT_LIST_HEAD(list);
	return list;
}

static struct list_head *unaccepted_waiting(struct zone *zone)
{
	return unaccepted_list(&unaccepted_zone(zone)->blocks);
}

static struct list_head *unaccepted_flying(struct zone *zone)
{
	return unaccepted_list(&unaccepted_zone(zone)->flying);
}

/*
 * Whether no block is pending, nor will be. Blocks are added with the count raised
 * before @unaccepted_closed is looked at, and here it is the other way round: one of
 * both sees the other.
 */
static bool unaccepted_close_blocks(void)
{
	/* There is no way back: nobody looks for blocks any more. */
	if (!static_key_enabled(&unaccepted_left))
		return true;

	do {
		WRITE_ONCE(unaccepted_closed, true);
		smp_mb(); /* see above */
		if (!atomic_long_read(&unaccepted_blocks))
			return true;
		WRITE_ONCE(unaccepted_closed, false);
		smp_mb(); /* The last one may have landed just before. */
	} while (!atomic_long_read(&unaccepted_blocks));
	return false;
}

/*
 * Turns the hook of the mode on_alloc off if nothing of the free lists is unaccepted;
 * whether it is off. Nothing may come online meanwhile: it is free before it is seen.
 */
static bool unaccepted_close_units(void)
{
	long before, units;

	if (!static_key_enabled(&unaccepted_on_alloc))
		return true;

	cpus_read_lock();
	get_online_mems();
	/*
	 * What is done meanwhile is subtracted, and may not have been counted: too few
	 * are noted then, and they are counted again, here or when they are none.
	 */
	do {
		before = atomic_long_read(&unaccepted_units);
		units = unaccepted_count();
	} while (atomic_long_add_return(units - before, &unaccepted_units) <= 0 && units);
	if (!units)
		static_branch_disable_cpuslocked(&unaccepted_on_alloc);
	put_online_mems();
	cpus_read_unlock();
	return !units;
}

/* Turns those hooks off that nothing is left for. */
static void unaccepted_close(struct work_struct *work)
{
	bool was_left = static_key_enabled(&unaccepted_left) ||
			static_key_enabled(&unaccepted_on_alloc);
	bool none_pending = unaccepted_close_blocks();
	bool none_free = unaccepted_close_units();

	if (none_pending)
		static_branch_disable(&unaccepted_left);
	if (unaccepted_table() && was_left && none_pending && none_free)
		pr_info("all memory that is online has been accepted\n");
}
static DECLARE_WORK(unaccepted_close_work, unaccepted_close);

static void unaccepted_queue_close(struct irq_work *work)
{
	schedule_work(&unaccepted_close_work);
}
static DEFINE_IRQ_WORK(unaccepted_close_irq_work, unaccepted_queue_close);

/* An allocation gets here, which may be one with a lock of workqueues held. */
static void unaccepted_drop(long blocks)
{
	if (!atomic_long_sub_return(blocks, &unaccepted_blocks) &&
	    READ_ONCE(unaccepted_settled))
		irq_work_queue(&unaccepted_close_irq_work);
}

/* A unit was accepted, whoever did it. Any context but NMI; interrupts are off. */
void unaccepted_unit_done(void)
{
	if (static_branch_unlikely(&unaccepted_on_alloc) &&
	    atomic_long_dec_return(&unaccepted_units) <= 0)
		irq_work_queue(&unaccepted_close_irq_work);
}

/* How much of what is online is unaccepted, in bytes. May sleep. */
static unsigned long unaccepted_remaining(void)
{
	unsigned long units;

	if (!unaccepted_is_free())
		return atomic_long_read(&unaccepted_blocks) * BLOCK_BYTES;

	get_online_mems();
	units = unaccepted_count();
	put_online_mems();
	return units * PMD_SIZE;
}

/**
 * unaccepted_may_be_free - whether memory enters the free lists as it is
 *
 * Not where free pages are written to, or are not in the direct map: SEV-SNP accepts
 * by virtual address.
 *
 * Context: any.
 * Return: true if post_alloc_hook() accepts what is allocated.
 */
bool unaccepted_may_be_free(void)
{
	return static_branch_unlikely(&unaccepted_on_alloc) && !want_init_on_free() &&
	       !page_poisoning_enabled_static() && !debug_pagealloc_enabled_static();
}

void __unaccepted_allocated(struct page *page, unsigned int order, gfp_t gfp)
{
	if (unaccepted_accept_allocated(page_to_phys(page), PAGE_SIZE << order,
					gfpflags_allow_blocking(gfp)))
		page_zero_cleared(page, order);
}

/* The node of a unit, or NUMA_NO_NODE if it is not online. Nothing goes offline. */
int unaccepted_node(phys_addr_t start)
{
	struct page *page = pfn_to_online_page(PHYS_PFN(start));

	return page ? page_to_nid(page) : NUMA_NO_NODE;
}

/* Whether memory that is unaccepted is in the free lists, and not in blocks */
bool unaccepted_is_free(void)
{
	return static_key_enabled(&unaccepted_on_alloc);
}

/**
 * unaccepted_pending - whether memory of a zone is not in the free lists yet
 * @zone: the zone
 *
 * Return: true if some of it waits, or is being accepted.
 */
bool unaccepted_pending(struct zone *zone)
{
	return atomic_read(&unaccepted_zone(zone)->pending);
}

/**
 * unaccepted_add - have a run wait for being accepted
 * @page: first page of a free run of MAX_PAGE_ORDER
 *
 * Return: true if it waits; false if it has to be accepted now, since no
 * allocation looks for such memory any more.
 */
bool unaccepted_add(struct page *page)
{
	struct zone *zone = page_zone(page);
	long blocks = MAX_ORDER_NR_PAGES / BLOCK_PAGES;
	unsigned long flags;

	atomic_long_add(blocks, &unaccepted_blocks);
	smp_mb(); /* see unaccepted_close() */
	if (READ_ONCE(unaccepted_closed)) {
		unaccepted_drop(blocks);
		return false;
	}

	spin_lock_irqsave(&zone->lock, flags);
	/* The highest is the first to go: its guard was accepted before. */
	list_add(&page->lru, &zone->unaccepted_pages);
	unaccepted_account(zone, MAX_ORDER_NR_PAGES);
	atomic_add(blocks, &unaccepted_zone(zone)->pending);
	__SetPageUnaccepted(page);
	spin_unlock_irqrestore(&zone->lock, flags);
	return true;
}

/* Takes a run apart; zone->lock is held. */
static void unaccepted_split(struct zone *zone, struct page *page)
{
	struct list_head *list = unaccepted_waiting(zone);
	unsigned long i;

	list_del(&page->lru);
	__ClearPageUnaccepted(page);
	for (i = 0; i < MAX_ORDER_NR_PAGES; i += BLOCK_PAGES)
		list_add(&page[i].lru, list);
}

/* Takes a block; zone->lock is held. */
static void unaccepted_remove(struct zone *zone, struct page *page)
{
	list_move(&page->lru, unaccepted_flying(zone));
	unaccepted_account(zone, -(long)BLOCK_PAGES);
	atomic_inc(&unaccepted_zone(zone)->in_flight);
}

/**
 * unaccepted_take - take a block
 * @zone: the zone
 *
 * Context: any but NMI; takes zone->lock.
 *
 * Return: the first page of a block, which is in flight until it is given to
 * unaccepted_landed(); NULL if there is none.
 */
struct page *unaccepted_take(struct zone *zone)
{
	struct page *page = NULL, *run;
	struct list_head *list;
	unsigned long flags;

	spin_lock_irqsave(&zone->lock, flags);
	list = unaccepted_waiting(zone);
	run = list_first_entry_or_null(&zone->unaccepted_pages, struct page, lru);
	if (run && list_empty(list))
		unaccepted_split(zone, run);
	page = list_first_entry_or_null(list, struct page, lru);
	if (page)
		unaccepted_remove(zone, page);
	spin_unlock_irqrestore(&zone->lock, flags);
	return page;
}

/**
 * unaccepted_take_node - take a block of a node
 * @nid: a node that is online
 *
 * Return: as of unaccepted_take().
 */
struct page *unaccepted_take_node(int nid)
{
	pg_data_t *pgdat = NODE_DATA(nid);
	struct page *page;
	int i;

	for (i = MAX_NR_ZONES - 1; i >= 0; i--) {
		struct zone *zone = &pgdat->node_zones[i];

		if (!populated_zone(zone) || !unaccepted_pending(zone))
			continue;
		page = unaccepted_take(zone);
		if (page)
			return page;
	}
	return NULL;
}

phys_addr_t unaccepted_block(struct page *page, unsigned long *size)
{
	*size = BLOCK_BYTES;
	return page_to_phys(page);
}

/**
 * unaccepted_landed - a block that was in flight has been accepted
 * @page: its first page; the block goes to the free lists
 * @zeroed: all of it is zero
 */
void unaccepted_landed(struct page *page, bool zeroed)
{
	struct zone *zone = page_zone(page);
	struct unaccepted_zone *state = unaccepted_zone(zone);
	unsigned long flags;

	spin_lock_irqsave(&zone->lock, flags);
	list_del(&page->lru);
	atomic_inc(&state->landing);
	spin_unlock_irqrestore(&zone->lock, flags);
	unaccepted_free_block(page, zeroed);
	atomic_dec(&state->pending);
	atomic_dec(&state->landing);
	/* Who sees it landing can wait for @landed to change. */
	smp_mb__before_atomic();
	atomic_inc(&state->landed);
	/* Who sees that none is in flight sees that it has landed. */
	smp_mb__before_atomic();
	atomic_dec(&state->in_flight);
	if (wq_has_sleeper(&unaccepted_landing))
		irq_work_queue(&unaccepted_wake_irq_work);
	unaccepted_drop(1);
}

unsigned int unaccepted_in_flight(struct zone *zone)
{
	return atomic_read_acquire(&unaccepted_zone(zone)->in_flight);
}

/* How many blocks of a zone have landed, ever; it wraps. */
unsigned int unaccepted_nr_landed(struct zone *zone)
{
	return atomic_read(&unaccepted_zone(zone)->landed);
}

/**
 * unaccepted_wait - wait until a block of a zone lands
 * @zone: the zone, with a block in flight
 * @before: what unaccepted_nr_landed() said before that was seen
 *
 * Context: may sleep.
 */
void unaccepted_wait(struct zone *zone, unsigned int before)
{
	/* Should the wake-up get lost, the caller looks again. */
	wait_event_timeout(unaccepted_landing,
			   unaccepted_nr_landed(zone) != before ||
			   !unaccepted_in_flight(zone),
			   msecs_to_jiffies(100));
}

/* Whether a block is in a list; zone->lock is held. */
static bool unaccepted_has(struct list_head *list, struct page *page)
{
	struct page *block;

	list_for_each_entry(block, list, lru)
		if (block == page)
			return true;
	return false;
}

/**
 * accept_pageblock - make sure that a pageblock is in use or free
 * @page: its first page
 *
 * The mark is on the first page of a run, which can be another pageblock.
 *
 * Context: may sleep.
 */
void accept_pageblock(struct page *page)
{
	unsigned long pfn = page_to_pfn(page);
	struct zone *zone = page_zone(page);
	bool waits, flies;
	unsigned int before;
	unsigned long flags;
	struct page *run;

	if (!static_branch_unlikely(&unaccepted_left) || !unaccepted_pending(zone))
		return;

	run = pfn_to_online_page(ALIGN_DOWN(pfn, MAX_ORDER_NR_PAGES));
	do {
		spin_lock_irqsave(&zone->lock, flags);
		if (run && page_zone(run) == zone && PageUnaccepted(run))
			unaccepted_split(zone, run);
		waits = unaccepted_has(unaccepted_waiting(zone), page);
		if (waits)
			unaccepted_remove(zone, page);
		before = unaccepted_nr_landed(zone);
		smp_rmb(); /* see unaccepted_landed() */
		/* A block that is landing is in no list: it may be this one. */
		flies = !waits && (unaccepted_has(unaccepted_flying(zone), page) ||
				   atomic_read(&unaccepted_zone(zone)->landing));
		spin_unlock_irqrestore(&zone->lock, flags);

		if (flies)
			unaccepted_wait(zone, before);
	} while (flies);
	if (waits)
		unaccepted_accept_block(page, UNACCEPTED_REQUEST);
}

/* Modes */

enum unaccepted_mode { LAZY, EAGER, BACKGROUND, ON_ALLOC };

static const char * const unaccepted_modes[] = {
	[LAZY] = "lazy", [EAGER] = "eager", [BACKGROUND] = "background",
	[ON_ALLOC] = "on_alloc",
};

static enum unaccepted_mode unaccepted_mode __read_mostly = LAZY;

static int __init accept_memory_parse(char *arg)
{
	int mode = match_string(unaccepted_modes, ARRAY_SIZE(unaccepted_modes), arg ?: "");

	if (mode < 0) {
		pr_warn("accept_memory=%s is not known: choose lazy, eager, background or on_alloc; it is %s\n",
			arg ?: "", unaccepted_modes[unaccepted_mode]);
		return 0;
	}
	unaccepted_mode = mode;
	if (mode == ON_ALLOC)
		static_branch_enable(&unaccepted_on_alloc);
	else
		static_branch_disable(&unaccepted_on_alloc);
	return 0;
}
early_param("accept_memory", accept_memory_parse);

/* Memory that is accepted when asked for, by all CPUs. */

/**
 * struct unaccepted_request - how much is to be accepted
 * @left: bytes that nobody has started on yet
 * @workers: workers that have not ended, and one more until all are queued
 * @done: there are no more
 */
struct unaccepted_request {
	atomic_long_t left;
	atomic_t workers;
	struct completion done;
};

struct unaccepted_worker {
	struct work_struct work;
	int nid;
	struct unaccepted_request *request;
};

static void unaccepted_worker_ends(struct unaccepted_request *request)
{
	if (atomic_dec_and_test(&request->workers))
		complete(&request->done);
}

static void unaccepted_worker_fn(struct work_struct *work)
{
	struct unaccepted_worker *worker =
		container_of(work, struct unaccepted_worker, work);
	struct unaccepted_request *request = worker->request;
	long bytes = unaccepted_is_free() ? PMD_SIZE : BLOCK_BYTES;
	bool advanced = true;

	while (advanced && atomic_long_sub_return(bytes, &request->left) > -bytes) {
		/* What is accepted in the free lists must not go away meanwhile. */
		get_online_mems();
		advanced = unaccepted_advance(worker->nid, UNACCEPTED_REQUEST);
		put_online_mems();
		/* Another node may have what this one has not. */
		if (!advanced)
			atomic_long_add(bytes, &request->left);
	}
	unaccepted_worker_ends(request);
}

/*
 * Accepts @bytes, or what there is of it, on as many CPUs as each node has, and
 * at least one. With -EINTR a signal ended it before.
 */
static int unaccepted_accept_now(long bytes)
{
	struct unaccepted_request request = {
		.left = ATOMIC_LONG_INIT(bytes),
		.workers = ATOMIC_INIT(1),
	};
	struct unaccepted_worker *workers;
	unsigned int nr = 0, max, i;
	int nid, err;

	/* Looked at once: CPUs and nodes come and go. */
	max = num_online_cpus() + num_online_nodes();
	workers = kcalloc(max, sizeof(*workers), GFP_KERNEL);
	if (!workers)
		return -ENOMEM;

	unaccepted_search_anew();
	init_completion(&request.done);
	for_each_online_node(nid) {
		unsigned int cpus = max_t(unsigned int, nr_cpus_node(nid), 1);

		for (i = 0; i < cpus && nr < max; i++, nr++) {
			workers[nr].nid = nid;
			workers[nr].request = &request;
			INIT_WORK(&workers[nr].work, unaccepted_worker_fn);
			atomic_inc(&request.workers);
			queue_work_node(nid, system_dfl_wq, &workers[nr].work);
		}
	}
	unaccepted_worker_ends(&request);
	err = wait_for_completion_interruptible(&request.done) ? -EINTR : 0;
	/* They end with the block that they are at. */
	if (err)
		atomic_long_set(&request.left, LONG_MIN / 2);
	for (i = 0; i < nr; i++)
		flush_work(&workers[i].work);
	kfree(workers);
	return err;
}

/* The background */

/* Of one CPU for each node, in percent: boot and workloads keep most of it */
static unsigned int unaccepted_share = 25;

/* MiB in a second for each node; 0 is no limit */
static unsigned int unaccepted_rate;

/*
 * Rests after a block that took so many ns. In parts, so that neither the freezer
 * nor whoever changes a limit waits for long.
 */
static void unaccepted_rest(u64 took)
{
	u64 begin = local_clock();

	while (!kthread_should_stop()) {
		u64 pause = unaccepted_pause(BLOCK_BYTES, took, READ_ONCE(unaccepted_share),
					     READ_ONCE(unaccepted_rate));
		u64 rested = local_clock() - begin, part;

		if (pause < rested + NSEC_PER_USEC)
			break;
		part = min_t(u64, pause - rested, 100 * NSEC_PER_MSEC);
		usleep_range_state(div_u64(part, NSEC_PER_USEC),
				   div_u64(part, NSEC_PER_USEC) + 100, TASK_IDLE);
		try_to_freeze();
	}
}

static int unaccepted_background(void *arg)
{
	int nid = (long)arg;

	set_freezable();
	while (!kthread_should_stop()) {
		u64 begin = local_clock();

		if (!unaccepted_advance(nid, UNACCEPTED_BACKGROUND))
			break;
		unaccepted_rest(local_clock() - begin);
		try_to_freeze();
	}
	return 0;
}

static void __init unaccepted_start_background(void)
{
	int nid;

	for_each_online_node(nid) {
		struct task_struct *task;

		task = kthread_create_on_node(unaccepted_background, (void *)(long)nid,
					      nid, "kaccept%d", nid);
		if (IS_ERR(task)) {
			pr_err("no background for node %d: error %ld; memory is accepted when needed\n",
			       nid, PTR_ERR(task));
			continue;
		}
		if (!cpumask_empty(cpumask_of_node(nid)))
			set_cpus_allowed_ptr(task, cpumask_of_node(nid));
		/* Below what users run, and above SCHED_IDLE, which may never run. */
		set_user_nice(task, 10);
		wake_up_process(task);
	}
}

/* /sys/kernel/mm/unaccepted/ */

static ssize_t mode_show(struct kobject *kobj, struct kobj_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%s\n", unaccepted_modes[unaccepted_mode]);
}
static struct kobj_attribute mode_attr = __ATTR_RO(mode);

static ssize_t remaining_show(struct kobject *kobj, struct kobj_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%lu\n", unaccepted_remaining());
}
static struct kobj_attribute remaining_attr = __ATTR_RO(remaining);

static ssize_t accept_store(struct kobject *kobj, struct kobj_attribute *attr,
			    const char *buf, size_t count)
{
	u64 bytes = LONG_MAX / 2;
	int err = 0;

	if (!sysfs_streq(buf, "all"))
		err = freepage_parse_bytes(buf, &bytes);
	if (!err && (!bytes || bytes > LONG_MAX / 2))
		err = -ERANGE;
	if (!err)
		err = unaccepted_accept_now(bytes);
	return err ?: count;
}
static struct kobj_attribute accept_attr = __ATTR_WO(accept);

static ssize_t background_share_show(struct kobject *kobj, struct kobj_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%u\n", READ_ONCE(unaccepted_share));
}

static ssize_t background_share_store(struct kobject *kobj, struct kobj_attribute *attr,
				      const char *buf, size_t count)
{
	unsigned int share;
	int err = kstrtouint(buf, 0, &share);

	if (!err && (!share || share > 100))
		err = -ERANGE;
	if (!err)
		WRITE_ONCE(unaccepted_share, share);
	return err ?: count;
}
static struct kobj_attribute background_share_attr = __ATTR_RW(background_share);

static ssize_t background_rate_show(struct kobject *kobj, struct kobj_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%u\n", READ_ONCE(unaccepted_rate));
}

static ssize_t background_rate_store(struct kobject *kobj, struct kobj_attribute *attr,
				     const char *buf, size_t count)
{
	unsigned int rate;
	int err = kstrtouint(buf, 0, &rate);

	if (!err)
		WRITE_ONCE(unaccepted_rate, rate);
	return err ?: count;
}
static struct kobj_attribute background_rate_attr = __ATTR_RW(background_rate);

static ssize_t stalls_show(struct kobject *kobj, struct kobj_attribute *attr, char *buf)
{
	ssize_t len = 0;
	int i;

	for (i = 0; i < UNACCEPTED_STALL_BUCKETS; i++)
		len += sysfs_emit_at(buf, len, "%lu %llu\n", i ? 1UL << i : 0,
				     unaccepted_stat(UNACCEPTED_STALLS + i));
	return len;
}
static struct kobj_attribute stalls_attr = __ATTR_RO(stalls);

#define UNACCEPTED_STAT(name, stat)						\
static ssize_t name##_show(struct kobject *kobj, struct kobj_attribute *attr,	\
			   char *buf)						\
{										\
	return sysfs_emit(buf, "%llu\n", unaccepted_stat(stat));		\
}										\
static struct kobj_attribute name##_attr = __ATTR_RO(name)

UNACCEPTED_STAT(bytes_boot, UNACCEPTED_BYTES + UNACCEPTED_BOOT);
UNACCEPTED_STAT(bytes_allocation, UNACCEPTED_BYTES + UNACCEPTED_ALLOCATION);
UNACCEPTED_STAT(bytes_background, UNACCEPTED_BYTES + UNACCEPTED_BACKGROUND);
UNACCEPTED_STAT(bytes_request, UNACCEPTED_BYTES + UNACCEPTED_REQUEST);
UNACCEPTED_STAT(calls_4k, UNACCEPTED_CALLS_4K);
UNACCEPTED_STAT(calls_2m, UNACCEPTED_CALLS_2M);
UNACCEPTED_STAT(calls_in_vain, UNACCEPTED_IN_VAIN);
UNACCEPTED_STAT(waits, UNACCEPTED_WAITS);
UNACCEPTED_STAT(longest_stall_ns, UNACCEPTED_STALL);
UNACCEPTED_STAT(longest_irqs_off_ns, UNACCEPTED_SECTION);

static struct attribute *unaccepted_attrs[] = {
	&mode_attr.attr,
	&remaining_attr.attr,
	&accept_attr.attr,
	&background_share_attr.attr,
	&background_rate_attr.attr,
	&bytes_boot_attr.attr,
	&bytes_allocation_attr.attr,
	&bytes_background_attr.attr,
	&bytes_request_attr.attr,
	&calls_4k_attr.attr,
	&calls_2m_attr.attr,
	&calls_in_vain_attr.attr,
	&waits_attr.attr,
	&longest_stall_ns_attr.attr,
	&longest_irqs_off_ns_attr.attr,
	&stalls_attr.attr,
	NULL,
};

static const struct attribute_group unaccepted_group = {
	.name = "unaccepted",
	.attrs = unaccepted_attrs,
};

/* Suspend, kexec, kdump */

/* An image has what was allocated, or would read what was not accepted. */
static int unaccepted_pm_notify(struct notifier_block *nb, unsigned long action, void *data)
{
	unsigned long bytes = unaccepted_remaining();

	if (action != PM_HIBERNATION_PREPARE && action != PM_RESTORE_PREPARE)
		return NOTIFY_OK;
	if (!bytes)
		return NOTIFY_OK;
	pr_err("no hibernation while %lu MiB are unaccepted: write \"all\" to /sys/kernel/mm/unaccepted/accept before\n",
	       bytes >> 20);
	return notifier_from_errno(-EBUSY);
}

static void unaccepted_shutdown(void *data)
{
	unaccepted_finish();
}

static const struct syscore_ops unaccepted_syscore_ops = {
	.shutdown = unaccepted_shutdown,
};

static struct syscore unaccepted_syscore = {
	.ops = &unaccepted_syscore_ops,
};

#ifdef CONFIG_PROC_VMCORE
static bool unaccepted_vmcore_pfn_is_ram(struct vmcore_cb *cb, unsigned long pfn)
{
	return !pfn_is_unaccepted_memory(pfn);
}

static struct vmcore_cb unaccepted_vmcore_cb = {
	.pfn_is_ram = unaccepted_vmcore_pfn_is_ram,
};

static int __init unaccepted_vmcore_init(void)
{
	register_vmcore_cb(&unaccepted_vmcore_cb);
	return 0;
}
core_initcall(unaccepted_vmcore_init);
#endif

/* What goes offline in the mode on_alloc need not be accepted any more. */
static int unaccepted_memory_notify(struct notifier_block *nb, unsigned long action,
				    void *data)
{
	if (action == MEM_OFFLINE && unaccepted_is_free())
		schedule_work(&unaccepted_close_work);
	return NOTIFY_OK;
}

static int __init unaccepted_init(void)
{
	WRITE_ONCE(unaccepted_settled, true);
	if (!unaccepted_table()) {
		schedule_work(&unaccepted_close_work);
		return 0;
	}

	pm_notifier(unaccepted_pm_notify, 0);
	hotplug_memory_notifier(unaccepted_memory_notify, DEFAULT_CALLBACK_PRI);
	register_syscore(&unaccepted_syscore);
	if (sysfs_create_group(mm_kobj, &unaccepted_group))
		pr_err("no /sys/kernel/mm/unaccepted: out of memory\n");

	if (unaccepted_mode == ON_ALLOC && !unaccepted_may_be_free()) {
		pr_warn("accept_memory=on_alloc: not with init_on_free, page_poison or debug_pagealloc; it is lazy\n");
		unaccepted_mode = LAZY;
		static_branch_disable(&unaccepted_on_alloc);
	}
	if (unaccepted_mode == EAGER && unaccepted_accept_now(LONG_MAX / 2))
		pr_err("not all memory could be accepted: out of memory\n");
	if (unaccepted_mode == BACKGROUND)
		unaccepted_start_background();
	if (!atomic_long_read(&unaccepted_blocks))
		schedule_work(&unaccepted_close_work);
	return 0;
}
late_initcall(unaccepted_init);
