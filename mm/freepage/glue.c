// SPDX-License-Identifier: GPL-2.0
/*
 * Free page treatment, the part in C: the hooks of the page allocator out of
 * line, and what zone.rs and primitives.rs cannot do by themselves. Nothing here
 * decides which page is treated, or knows what for.
 *
 * Lock order: the locks of the treatments (see freepage.rst) -> zone->lock.
 */
#include <linux/freezer.h>
#include <linux/irq_work.h>
#include <linux/memory.h>
#include <linux/memory_hotplug.h>
#include <linux/mm.h>
#include <linux/page-isolation.h>
#include <linux/sched.h>
#include <linux/vmstat.h>
#include <linux/workqueue.h>

#include "../internal.h"
#include "../page_alloc.h"
#include "freepage.h"

/* Blocks stay within a chunk, and the groups of a chunk fill a word. */
static_assert(MAX_PAGE_ORDER <= FREEPAGE_CHUNK_ORDER);
static_assert(1 << (FREEPAGE_CHUNK_ORDER - FREEPAGE_GROUP_ORDER) == BITS_PER_LONG);

/* Hooks, see freepage.h. */

DEFINE_STATIC_KEY_FALSE(freepage_key);

unsigned int freepage_least_order = NR_PAGE_ORDERS;

unsigned long freepage_off[MAX_NUMNODES][MAX_NR_ZONES];

/*
 * Asks for a pass from the hooks. To queue work takes locks under which debug
 * objects allocate pages, that is, zone->lock: not while that is held.
 */
static void freepage_trigger(struct irq_work *work)
{
	freepage_request(container_of(work, struct freepage_trigger, request) -
			 freepage_triggers);
}

struct freepage_trigger freepage_triggers[NR_FREEPAGE_TREATMENTS] = {
	[0 ... NR_FREEPAGE_TREATMENTS - 1] = {
		.order = NR_PAGE_ORDERS,
		.batch = 1,
		.request = IRQ_WORK_INIT(freepage_trigger),
	},
};

static struct freepage_chunk *freepage_chunk(struct freepage_map *map,
					     unsigned long pfn)
{
	unsigned long index = (pfn - map->start_pfn) >> FREEPAGE_CHUNK_ORDER;

	if (unlikely(index >= map->nr_chunks || !map->chunks[index].freed))
		return NULL;
	return &map->chunks[index];
}

static void freepage_set_freed(struct freepage_map *map, unsigned long pfn,
			       unsigned int order)
{
	struct freepage_chunk *chunk = freepage_chunk(map, pfn);
	unsigned long bit = pfn % (1UL << FREEPAGE_CHUNK_ORDER);
	unsigned long *word, *end;

	if (unlikely(!chunk))
		return;

	word = &chunk->freed[BIT_WORD(bit)];
	/* A block is aligned, so a small one does not cross a word. */
	if (order < ilog2(BITS_PER_LONG)) {
		*word |= ((1UL << (1U << order)) - 1) << (bit % BITS_PER_LONG);
		return;
	}
	/* A few words: memset() would cost more. */
	for (end = word + BIT_WORD(1UL << order); word < end; word++)
		WRITE_ONCE(*word, ~0UL);
}

void freepage_freed(struct zone *zone, unsigned long pfn, unsigned int order)
{
	int i;

	for (i = 0; i < NR_FREEPAGE_TREATMENTS; i++)
		if (zone->freepage_maps[i])
			freepage_set_freed(zone->freepage_maps[i], pfn, order);
}

/* Whether a page of a block was freed, and not treated since */
static bool freepage_any_freed(struct freepage_chunk *chunk, unsigned long pfn,
			       unsigned int order)
{
	unsigned long bit = pfn % (1UL << FREEPAGE_CHUNK_ORDER);
	unsigned long *word = &chunk->freed[BIT_WORD(bit)], *end;

	if (order < ilog2(BITS_PER_LONG))
		return *word & ((1UL << (1U << order)) - 1) << (bit % BITS_PER_LONG);
	for (end = word + BIT_WORD(1UL << order); word < end; word++)
		if (*word)
			return true;
	return false;
}

static noinline void freepage_set_pending(struct freepage_map *map,
					  struct freepage_chunk *chunk,
					  unsigned long pfn, unsigned int order,
					  struct freepage_trigger *trigger, bool only_new)
{
	unsigned long group = pfn % (1UL << FREEPAGE_CHUNK_ORDER) >> FREEPAGE_GROUP_ORDER;
	unsigned long last = group;
	bool new = false;

	if (order > FREEPAGE_GROUP_ORDER)
		last += (1UL << (order - FREEPAGE_GROUP_ORDER)) - 1;
	for (; group <= last; group++)
		if (!__test_and_set_bit(group, &chunk->pending)) {
			map->nr_pending++;
			new = true;
		}

	if (map->requested || (only_new && !new))
		return;
	if (++map->notified < READ_ONCE(trigger->batch))
		return;
	map->requested = true;
	irq_work_queue(&trigger->request);
}

void __freepage_notify(struct zone *zone, unsigned long pfn, unsigned int order,
		       bool untouched)
{
	int i;

	for (i = 0; i < NR_FREEPAGE_TREATMENTS; i++) {
		struct freepage_map *map = zone->freepage_maps[i];
		struct freepage_chunk *chunk;

		if (!map || order < READ_ONCE(freepage_triggers[i].order))
			continue;
		chunk = freepage_chunk(map, pfn);
		if (unlikely(!chunk))
			continue;
		/* A pass that puts pages back is no reason for another one. */
		if (!untouched || freepage_any_freed(chunk, pfn, order))
			freepage_set_pending(map, chunk, pfn, order,
					     &freepage_triggers[i], untouched);
	}
}

/* What zone.rs looks at. */

/**
 * freepage_first_zone - first zone of the first online node
 *
 * Return: where to start with next_zone(). Zones are never freed.
 */
struct zone *freepage_first_zone(void)
{
	return first_online_pgdat()->node_zones;
}

/**
 * freepage_lock - take zone->lock
 * @zone: the zone
 *
 * Context: process context, interrupts on. They are off until freepage_unlock().
 */
void freepage_lock(struct zone *zone)
	__acquires(&zone->lock)
{
	spin_lock_irq(&zone->lock);
}

/**
 * freepage_unlock - release zone->lock
 * @zone: the zone, locked by freepage_lock()
 */
void freepage_unlock(struct zone *zone)
	__releases(&zone->lock)
{
	spin_unlock_irq(&zone->lock);
}

/**
 * freepage_find - find the block on a free list that a page belongs to
 * @zone: the zone; its lock is held
 * @pfn: the page; it has a struct page, maybe in another zone
 * @floor: a block that begins below this one is not looked for; the caller
 *         knows that the page before is not free
 * @block: set if a block was found; what was found before during the same hold
 *         of the lock, or all zero
 *
 * Return: true if @pfn is part of a block on a free list of @zone.
 */
bool freepage_find(struct zone *zone, unsigned long pfn, unsigned long floor,
		   struct freepage_block *block)
{
	struct page *page = pfn_to_page(pfn);
	unsigned long head = pfn;

	lockdep_assert_held(&zone->lock);

	/*
	 * Mostly the block begins with @pfn, else at one of its alignments. The
	 * lock of another zone is not held: what its pages say means nothing.
	 */
	while (!PageBuddy(page) || page_zone(page) != zone) {
		if (!head)
			return false;
		head &= head - 1;
		if (head < floor || pfn - head >= MAX_ORDER_NR_PAGES)
			return false;
		page = pfn_to_page(head);
	}
	if (head + (1UL << buddy_order(page)) <= pfn)
		return false;

	/* Neighbours mostly share a pageblock. */
	if (!block->page || (block->pfn ^ head) >> pageblock_order) {
		block->migratetype = get_pfnblock_migratetype(page, head);
		block->isolated = is_migrate_isolate(block->migratetype);
	}
	block->page = page;
	block->pfn = head;
	block->order = buddy_order(page);
	return true;
}

/**
 * freepage_spare - how many pages may leave the free lists for a while
 * @zone: the zone; its lock is held
 *
 * Return: the free pages above the low watermark, less those that not everyone may
 * use (high-priority allocations, CMA), and those that are not accepted.
 */
unsigned long freepage_spare(struct zone *zone)
{
	unsigned long kept = low_wmark_pages(zone) + zone->nr_free_highatomic;
	unsigned long free = zone_page_state(zone, NR_FREE_PAGES);

	kept += zone_page_state(zone, NR_FREE_CMA_PAGES);
#ifdef CONFIG_UNACCEPTED_MEMORY
	kept += zone_page_state(zone, NR_UNACCEPTED);
#endif

	return free > kept ? free - kept : 0;
}

/* How many pages of a zone treatments have off the free lists; its lock is held */
unsigned long freepage_nr_off(struct zone *zone)
{
	return freepage_off[zone_to_nid(zone)][zone_idx(zone)];
}

/**
 * freepage_online - whether a page exists, and is in a zone
 * @zone: the zone
 * @pfn: any page frame number
 *
 * Context: with @zone's lock held, or memory hotplug kept off: else the struct page
 * that is looked at could vanish.
 * Return: true if the memory of @pfn is online in @zone.
 */
bool freepage_online(struct zone *zone, unsigned long pfn)
{
	struct page *page = pfn_to_online_page(pfn);

	return page && page_zone(page) == zone;
}

/**
 * freepage_section_pages - how much memory has a memmap all in one
 *
 * Return: a power of two; aligned runs of so many pages have one, or have none.
 */
unsigned long freepage_section_pages(void)
{
#ifdef CONFIG_SPARSEMEM
	return PAGES_PER_SECTION;
#else
	return MAX_ORDER_NR_PAGES;
#endif
}

/* Keep memory from coming online and going offline, and let it. May sleep. */
void freepage_get_online_mems(void)
{
	get_online_mems();
}

void freepage_put_online_mems(void)
{
	put_online_mems();
}

/**
 * freepage_has_page - whether a page is in a zone
 * @zone: the zone
 * @pfn: a page that has a struct page, online or about to be
 *
 * Return: true if it is.
 */
bool freepage_has_page(struct zone *zone, unsigned long pfn)
{
	return page_zone(pfn_to_page(pfn)) == zone;
}

/* A few batches, so that a CPU that goes on does not have to take the zone lock. */
static int freepage_keep(struct per_cpu_pages *pcp)
{
	return min(READ_ONCE(pcp->high_min), 4 * READ_ONCE(pcp->batch));
}

/**
 * freepage_excess - how many pages a CPU keeps on its lists beyond the least
 * @zone: the zone, which is populated
 *
 * A CPU that allocated much may keep an eighth of its node's memory after that.
 * decay_pcp_high() takes it back, but slowly, and waits for an idle CPU to wake.
 *
 * Context: process context.
 * Return: the most that one has. Not the sum, which is large wherever there are
 *	   many CPUs.
 */
int freepage_excess(struct zone *zone)
{
	int cpu, excess = 0;

	for_each_online_cpu(cpu) {
		struct per_cpu_pages *pcp = per_cpu_ptr(zone->per_cpu_pageset, cpu);

		excess = max(excess, READ_ONCE(pcp->count) - freepage_keep(pcp));
	}
	return excess;
}

/**
 * freepage_drain_zone - free the pages that CPUs keep on their lists
 * @zone: the zone, which is populated
 * @all: not only what is beyond the least, see freepage_excess()
 *
 * Context: process context; may sleep. Holds zone->lock for a batch at a time.
 */
void freepage_drain_zone(struct zone *zone, bool all)
{
	int cpu;

	for_each_online_cpu(cpu) {
		struct per_cpu_pages *pcp = per_cpu_ptr(zone->per_cpu_pageset, cpu);
		int keep = all ? 0 : freepage_keep(pcp);
		/* No more than it had: a CPU that allocates gets others meanwhile. */
		int left = READ_ONCE(pcp->count) - keep;

		while (left > 0) {
			int nr = freepage_drain(zone, cpu, keep);

			if (!nr)
				break;
			left -= nr;
			cond_resched();
		}
	}
}

/**
 * freepage_track - have the hooks called, or no longer
 * @treatment: on behalf of which
 * @track: whether its zones have maps
 *
 * Context: process context; may sleep. Each call with true has one with false.
 */
void freepage_track(enum freepage_treatment treatment, bool track)
{
	if (track)
		static_branch_inc(&freepage_key);
	else
		static_branch_dec(&freepage_key);
}

static int freepage_memory_notify(struct notifier_block *nb,
				  unsigned long action, void *data)
{
	struct memory_notify *arg = data;

	switch (action) {
	case MEM_GOING_ONLINE:
		freepage_memory_online(arg->start_pfn, arg->nr_pages);
		break;
	case MEM_CANCEL_ONLINE:
	case MEM_OFFLINE:
		freepage_memory_offline(arg->start_pfn, arg->nr_pages);
		break;
	}
	return NOTIFY_OK;
}

/* What primitives.rs calls. */

void freepage_cond_resched(void)
{
	cond_resched();
}

/* Whether work that can be frozen has to come to an end. */
bool freepage_freezing(void)
{
#ifdef CONFIG_FREEZER
	return READ_ONCE(pm_nosig_freezing);
#else
	return false;
#endif
}

/**
 * freepage_nr_allocated - how many pages were allocated
 * @pages: set to how many since boot; it wraps
 *
 * Context: process context.
 * Return: whether the kernel counts them.
 */
bool freepage_nr_allocated(unsigned long *pages)
{
#ifdef CONFIG_VM_EVENT_COUNTERS
	int cpu, i;

	*pages = 0;
	for_each_possible_cpu(cpu)
		for (i = 0; i < MAX_NR_ZONES; i++)
			*pages += READ_ONCE(per_cpu(vm_event_states, cpu).event[PGALLOC_NORMAL -
										ZONE_NORMAL + i]);
	return true;
#else
	return false;
#endif
}

/**
 * freepage_set_order - say which blocks are worth a pass
 * @treatment: the treatment
 * @order: order of the smallest; NR_PAGE_ORDERS: none is
 *
 * Context: process context.
 */
void freepage_set_order(enum freepage_treatment treatment, unsigned int order)
{
	static DEFINE_SPINLOCK(lock);
	unsigned int least = order;
	int i;

	spin_lock(&lock);
	WRITE_ONCE(freepage_triggers[treatment].order, order);
	for (i = 0; i < NR_FREEPAGE_TREATMENTS; i++)
		least = min(least, freepage_triggers[i].order);
	WRITE_ONCE(freepage_least_order, least);
	spin_unlock(&lock);
}

/* A pass may take long, and is bound to no CPU. */
static struct workqueue_struct *freepage_wq;

/* Those that make passes. Each is that of a treatment, or of what it treats for. */
static struct delayed_work *freepage_works[NR_FREEPAGE_TREATMENTS];

static void freepage_work_fn(struct work_struct *work)
{
	int i;

	for (i = 0; i < NR_FREEPAGE_TREATMENTS; i++)
		if (freepage_works[i] == to_delayed_work(work))
			freepage_pass(i);
}

/**
 * freepage_init_work - say which work makes the passes of a treatment
 * @treatment: the treatment, which is not started
 * @work: the work, there as long as it is
 *
 * Context: any.
 */
void freepage_init_work(enum freepage_treatment treatment, struct delayed_work *work)
{
	INIT_DELAYED_WORK(work, freepage_work_fn);
	freepage_works[treatment] = work;
}

/**
 * freepage_queue - queue the next pass
 * @treatment: the treatment
 * @delay_ms: time until then
 * @again: if one is queued, replace it
 *
 * Context: any, but zone->lock is not held.
 */
void freepage_queue(enum freepage_treatment treatment, unsigned int delay_ms,
		    bool again)
{
	struct delayed_work *work = freepage_works[treatment];

	if (again)
		mod_delayed_work(freepage_wq, work, msecs_to_jiffies(delay_ms));
	else
		queue_delayed_work(freepage_wq, work, msecs_to_jiffies(delay_ms));
}

/**
 * freepage_sync - wait for the hooks, which may be about to request a pass
 * @treatment: the treatment; it tracks no zone any more
 *
 * Context: process context; may sleep.
 */
void freepage_sync(enum freepage_treatment treatment)
{
	irq_work_sync(&freepage_triggers[treatment].request);
}

/**
 * freepage_cancel - wait for a pass that runs, and drop one that is queued
 * @treatment: the treatment
 *
 * Context: process context; may sleep.
 */
void freepage_cancel(enum freepage_treatment treatment)
{
	cancel_delayed_work_sync(freepage_works[treatment]);
}

static int __init freepage_glue_init(void)
{
	/* Without memory for its own, that of others does. */
	freepage_wq = alloc_workqueue("freepage", WQ_UNBOUND | WQ_FREEZABLE, 0) ?:
		      system_freezable_wq;
	freepage_init();
	return hotplug_memory_notifier(freepage_memory_notify,
				       DEFAULT_CALLBACK_PRI);
}
core_initcall(freepage_glue_init);
