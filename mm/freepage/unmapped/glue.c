// SPDX-License-Identifier: GPL-2.0
/*
 * The unmapped page allocator, the part in C: its interface to the kernel, what
 * pages.rs needs to do to pages and page tables, and what has to be in C
 * (initcalls, notifiers, the debugfs file, exported symbols).
 *
 * Policy is in the .rs files. Nothing here decides which page goes where.
 *
 * Context: whoever takes pages out of the direct map or puts them back sleeps,
 * or at least has interrupts on: cpa_lock is not taken from interrupts. A free
 * may come from any context, and is only queued.
 */
#include <linux/cpuset.h>
#include <linux/debugfs.h>
#include <linux/export.h>
#include <linux/irq_work.h>
#include <linux/llist.h>
#include <linux/memcontrol.h>
#include <linux/memory.h>
#include <linux/memory_hotplug.h>
#include <linux/mempolicy.h>
#include <linux/mm.h>
#include <linux/moduleparam.h>
#include <linux/page-isolation.h>
#include <linux/pgalloc.h>
#include <linux/sched/mm.h>
#include <linux/seq_file.h>
#include <linux/set_memory.h>
#include <linux/slab.h>
#include <linux/srcu.h>
#include <linux/suspend.h>
#include <linux/swap.h>
#include <linux/unmapped_alloc.h>
#include <linux/vmalloc.h>
#include <linux/vmstat.h>
#include <linux/workqueue.h>

#include <asm/tlbflush.h>

#include "../../internal.h"
#include "../../page_alloc.h"
#include "unmapped.h"

#undef MODULE_PARAM_PREFIX
#define MODULE_PARAM_PREFIX "unmapped_alloc."

#undef pr_fmt
#define pr_fmt(fmt) "unmapped_alloc: " fmt

DEFINE_STATIC_KEY_FALSE(unmapped_alloc_used);

/* The cache could be set up, and pages have somewhere to be cleared. */
static bool unmapped_alloc_ready __ro_after_init;

/* No page leaves the direct map while a hibernation image is made. */
static bool unmapped_alloc_paused;

/* Refills that may not have seen that yet. */
DEFINE_STATIC_SRCU(unmapped_refills);

/* Pages outside the direct map; the node counters are late by some. */
static atomic_long_t unmapped_total;

/* Those of them in use whose owner lets them be saved when hibernating. */
static atomic_long_t unmapped_saved;

/* Freed pages, and work that finds out which of them are the cache's. */

static LLIST_HEAD(unmapped_freed);

static void unmapped_drain_work(struct work_struct *work)
{
	unmapped_alloc_drain();
}
static DECLARE_WORK(unmapped_drain, unmapped_drain_work);

/* To queue work takes locks that whoever frees a page may hold. */
static void unmapped_drain_queue(struct irq_work *work)
{
	queue_work(system_dfl_wq, &unmapped_drain);
}
static DEFINE_IRQ_WORK(unmapped_drain_irq_work, unmapped_drain_queue);

/* What of unmapped_freed is sorted out next; all who do it share it. */
static struct llist_node *unmapped_pending;
static DEFINE_SPINLOCK(unmapped_pending_lock);

/* Pages of each node that were freed and are not sorted out. */
static atomic_long_t unmapped_pending_pages[MAX_NUMNODES];

/**
 * unmapped_alloc_free - take a page that is being freed
 * @page: page of a pageblock that has unmapped pages; its reference count is 0
 * @order: order of the page
 *
 * The hook of __free_pages_prepare(). Whether the page is unmapped is found out
 * by a work item.
 *
 * Context: any.
 */
void unmapped_alloc_free(struct page *page, unsigned int order)
{
	set_page_private(page, order);
	atomic_long_add(1L << order, &unmapped_pending_pages[page_to_nid(page)]);
	if (llist_add(&page->pcp_llist, &unmapped_freed))
		irq_work_queue(&unmapped_drain_irq_work);
}

/**
 * unmapped_next_pending - take a page that was freed
 *
 * Context: process context.
 * Return: the page, or one with the page frame number ULONG_MAX if there is none.
 */
struct unmapped_run unmapped_next_pending(void)
{
	struct unmapped_run run = { .pfn = ULONG_MAX };
	struct page *page;

	scoped_guard(spinlock, &unmapped_pending_lock) {
		if (!unmapped_pending)
			unmapped_pending = llist_del_all(&unmapped_freed);
		if (!unmapped_pending)
			return run;
		page = llist_entry(unmapped_pending, struct page, pcp_llist);
		unmapped_pending = unmapped_pending->next;
	}
	run.pfn = page_to_pfn(page);
	run.order = page_private(page);
	set_page_private(page, 0);
	atomic_long_sub(1L << run.order, &unmapped_pending_pages[page_to_nid(page)]);
	return run;
}

unsigned long unmapped_nr_pending(int nid)
{
	return atomic_long_read(&unmapped_pending_pages[nid]);
}

/* A page of the same pageblock that never was unmapped, or is so no more. */
void unmapped_give_back(unsigned long pfn, unsigned int order)
{
	unmapped_page_give_back(pfn_to_page(pfn), order);
}

/* The interface. */

static int unmapped_preferred_nid(void)
{
	int nid = numa_mem_id();

#ifdef CONFIG_NUMA
	nid = mempolicy_slab_node();
#endif
	if (node_isset(nid, cpuset_current_mems_allowed))
		return nid;
	return first_node(cpuset_current_mems_allowed);
}

/* Nodes that the memory policy of the task binds it to, or NULL for all. */
static nodemask_t *unmapped_policy_nodes(gfp_t gfp)
{
#ifdef CONFIG_NUMA
	struct mempolicy *policy = current->mempolicy;

	if (policy && policy->mode == MPOL_BIND &&
	    apply_policy_zone(policy, gfp_zone(gfp)) &&
	    cpuset_nodemask_valid_mems_allowed(&policy->nodes))
		return &policy->nodes;
#endif
	return NULL;
}

static bool unmapped_node_allowed(int nid, gfp_t gfp, nodemask_t *nodes)
{
	return node_state(nid, N_MEMORY) && (!nodes || node_isset(nid, *nodes)) &&
		cpuset_zone_allowed(NODE_DATA(nid)->node_zones, gfp);
}

/* @nid, or another one if the caller may not use that; or NUMA_NO_NODE. */
static int unmapped_allowed_nid(int nid, gfp_t gfp, nodemask_t *nodes)
{
	if (unmapped_node_allowed(nid, gfp, nodes))
		return nid;
	if (gfp & __GFP_THISNODE)
		return NUMA_NO_NODE;
	for_each_node_state(nid, N_MEMORY)
		if (unmapped_node_allowed(nid, gfp, nodes))
			return nid;
	return NUMA_NO_NODE;
}

/* From the caches of other nodes, as far as the caller may use these. */
static unsigned long unmapped_take_elsewhere(gfp_t gfp, unsigned int order,
					     nodemask_t *nodes)
{
	unsigned long pfn;
	int nid;

	if (gfp & __GFP_THISNODE)
		return ULONG_MAX;
	for_each_node_state(nid, N_MEMORY) {
		if (!unmapped_node_allowed(nid, gfp, nodes))
			continue;
		pfn = unmapped_alloc_take(nid, order);
		if (pfn != ULONG_MAX)
			return pfn;
	}
	return ULONG_MAX;
}

/*
 * The first node, by distance, that can spare a block. From one that is full there
 * would be single pages, of its own or of others: each splits an entry of the
 * direct map.
 */
static int unmapped_roomy_nid(int preferred, gfp_t gfp, nodemask_t *nodes)
{
	enum zone_type highest = gfp_zone(gfp);
	struct zoneref *z;
	struct zone *zone;

	if (gfp & __GFP_THISNODE)
		return preferred;
	for_each_zone_zonelist(zone, z, node_zonelist(preferred, gfp), highest) {
		unsigned long mark = high_wmark_pages(zone) + (1UL << PMD_ORDER);
		int nid = zone_to_nid(zone);

		if (unmapped_node_allowed(nid, gfp, nodes) &&
		    zone_watermark_ok(zone, 0, mark, highest, 0))
			return nid;
	}
	return preferred;
}

static unsigned long unmapped_refill(gfp_t gfp, unsigned int order, unsigned int largest,
				     int preferred, nodemask_t *nodes)
{
	int nid = unmapped_roomy_nid(preferred, gfp, nodes);
	unsigned long pfn;

	if (nid != preferred) {
		pfn = unmapped_alloc_take(nid, order);
		if (pfn != ULONG_MAX)
			return pfn;
		preferred = nid;
	}
	return unmapped_alloc_refill(gfp, nodes, preferred, order, largest);
}

static unsigned long unmapped_get_pages(gfp_t gfp, unsigned int order, unsigned int largest,
					int nid, nodemask_t *nodes)
{
	unsigned long pfn;

	nid = unmapped_allowed_nid(nid, gfp, nodes);
	if (nid == NUMA_NO_NODE)
		return ULONG_MAX;
	pfn = unmapped_alloc_take(nid, order);
	if (pfn == ULONG_MAX && gfpflags_allow_blocking(gfp)) {
		/* Page tables and bookkeeping, too, are allocated as the caller may. */
		unsigned int scope = memalloc_apply_gfp_scope(gfp);

		scoped_guard(srcu, &unmapped_refills)
			if (!READ_ONCE(unmapped_alloc_paused))
				pfn = unmapped_refill(gfp, order, largest, nid, nodes);
		memalloc_restore_scope(scope);
	}
	if (pfn == ULONG_MAX)
		pfn = unmapped_take_elsewhere(gfp, order, nodes);
	return pfn;
}

/* Not static_key_enabled(), which is true before all CPUs run the hook. */
static bool unmapped_hook_runs(void)
{
	return atomic_read_acquire(&unmapped_alloc_used.key.enabled) > 0;
}

/**
 * unmapped_alloc_enable - get ready for pages to leave the direct map
 *
 * Each free of a page looks for unmapped ones from then on. To be called before
 * the first unmapped_pages_alloc(): from a module's init function, say, or
 * a system call. An allocation is too late, since whoever faults or has text
 * poked holds locks that others take after those of CPU hotplug.
 *
 * Context: process context, with no lock held.
 * Return: 0, or -ENOMEM if the cache could not be set up at boot.
 */
int unmapped_alloc_enable(void)
{
	if (!unmapped_alloc_ready)
		return -ENOMEM;
	if (!unmapped_hook_runs())
		static_branch_enable(&unmapped_alloc_used);
	return 0;
}
EXPORT_SYMBOL_GPL(unmapped_alloc_enable);

static struct page *unmapped_frozen_pages(gfp_t gfp, unsigned int order,
					  unsigned int largest, int nid,
					  nodemask_t *nodes)
{
	unsigned long pfn;
	struct page *page;

	if (!unmapped_alloc_ready)
		return ERR_PTR(-ENODEV);
	if (!in_task() || order > MAX_PAGE_ORDER || (gfp & (__GFP_DMA | __GFP_DMA32)) ||
	    WARN_ON_ONCE(!unmapped_hook_runs()))
		return ERR_PTR(-EINVAL);
	might_alloc(gfp);

	pfn = unmapped_get_pages(gfp, order, largest, nid, nodes);
	if (pfn == ULONG_MAX)
		return ERR_PTR(READ_ONCE(unmapped_alloc_paused) ? -EBUSY : -ENOMEM);
	page = pfn_to_page(pfn);
	unmapped_page_hand_out(page, order, gfp);
	return page;
}

/**
 * unmapped_frozen_pages_alloc - allocate pages outside the direct map
 * @gfp: as for unmapped_pages_alloc(), and as the context of the caller allows.
 *	Nothing is charged for %__GFP_ACCOUNT
 * @order: the allocation is of 1 << @order pages
 * @nid: the node that is preferred
 * @nodes: nodes that the pages may be from, or NULL for all
 *
 * Context: process context. Without %__GFP_DIRECT_RECLAIM it may hold
 * spinlocks, and gets a page only if one is cached.
 * Return: the first page, with a reference count of 0, or NULL, as the page
 * allocator does.
 */
struct page *unmapped_frozen_pages_alloc(gfp_t gfp, unsigned int order, int nid,
					 nodemask_t *nodes)
{
	struct page *page = unmapped_frozen_pages(gfp, order, PMD_ORDER, nid, nodes);

	return IS_ERR(page) ? NULL : page;
}

/**
 * unmapped_pages_alloc_limited - allocate pages outside the direct map
 * @gfp: as for unmapped_pages_alloc()
 * @order: as for unmapped_pages_alloc()
 * @largest: order of the largest block that is taken out of the direct map for
 *	these pages, if it takes one. One of @order may be
 *
 * Context: as for unmapped_pages_alloc().
 * Return: as of unmapped_pages_alloc().
 */
struct page *unmapped_pages_alloc_limited_noprof(gfp_t gfp, unsigned int order,
						 unsigned int largest)
{
	struct page *page;

	gfp = current_gfp_context(gfp);
	page = unmapped_frozen_pages(gfp, order, largest, unmapped_preferred_nid(),
				     unmapped_policy_nodes(gfp));
	if (IS_ERR(page))
		return page;
	set_page_refcounted(page);
	if (memcg_kmem_online() && (gfp & __GFP_ACCOUNT) &&
	    __memcg_kmem_charge_page(page, gfp, order)) {
		unmapped_pages_free(page, order);
		return ERR_PTR(-ENOMEM);
	}
	return page;
}

/**
 * unmapped_pages_alloc - allocate pages outside the direct map
 * @gfp: who may be disturbed for it. %__GFP_ACCOUNT and %__GFP_COMP have the
 *	usual meaning, and %__GFP_THISNODE is kept to. The content is zero
 *	whether or not %__GFP_ZERO is set. There are no pages for %__GFP_DMA and
 *	%__GFP_DMA32
 * @order: the allocation is of 1 << @order pages, up to MAX_PAGE_ORDER
 *
 * Of the pages, only struct page may be used: page_address() and kmap() give
 * an address at which nothing is mapped. Map them elsewhere, for a user or with
 * vmap(). They are freed as all pages are, by unmapped_pages_free() or their
 * last put_page(), and need not be mapped or cleared before.
 *
 * Context: process context, after unmapped_alloc_enable(). Without
 * %__GFP_DIRECT_RECLAIM it may hold spinlocks, and gets a page only if one is
 * cached.
 * Return: the first page; or ERR_PTR() of
 * -ENOMEM: there is no memory, or none that this caller may use;
 * -EBUSY: the system is about to hibernate, and nothing leaves the direct map
 * until it has, or does not. A task that is not frozen fails, or does without:
 * that may take as long as a user likes;
 * -EINVAL: @gfp or @order cannot be had at all, or not in this context;
 * -ENODEV: early in boot, or the cache could not be set up.
 */
struct page *unmapped_pages_alloc_noprof(gfp_t gfp, unsigned int order)
{
	return unmapped_pages_alloc_limited_noprof(gfp, order, PMD_ORDER);
}
EXPORT_SYMBOL_GPL(unmapped_pages_alloc_noprof);

/**
 * unmapped_pages_free - free pages that unmapped_pages_alloc() returned
 * @page: the first page
 * @order: as it was allocated
 *
 * Drops a reference. After the last one the content is cleared before anybody
 * else gets the pages.
 *
 * Context: any but NMI.
 */
void unmapped_pages_free(struct page *page, unsigned int order)
{
	__free_pages(page, order);
}
EXPORT_SYMBOL_GPL(unmapped_pages_free);

/**
 * unmapped_alloc_is_ready - whether there are unmapped pages at all
 *
 * Return: false early in boot, or if the cache could not be set up.
 */
bool unmapped_alloc_is_ready(void)
{
	return unmapped_alloc_ready;
}

/**
 * unmapped_pages_may_be_saved - let the system hibernate with pages in use
 * @pages: how many pages the caller has more than before
 *
 * Unmapped pages in use keep the system from hibernating, since what they hold
 * may have no place on a disk. The caller has some for which this is not so.
 *
 * Context: any.
 */
void unmapped_pages_may_be_saved(long pages)
{
	atomic_long_add(pages, &unmapped_saved);
}

/* What pages.rs does to lists of free pages; the cache's lock is held. */

struct unmapped_lists *unmapped_lists_alloc(int nid)
{
	struct unmapped_lists *lists;
	unsigned int order;

	lists = kmalloc_node(sizeof(*lists), GFP_KERNEL,
			     node_state(nid, N_MEMORY) ? nid : NUMA_NO_NODE);
	if (!lists)
		return NULL;
	for (order = 0; order < NR_PAGE_ORDERS; order++)
		INIT_LIST_HEAD(&lists->free[order]);
	return lists;
}

void unmapped_list_add(struct unmapped_lists *lists, unsigned long pfn,
		       unsigned int order)
{
	struct page *page = pfn_to_page(pfn);

	set_page_private(page, order);
	__SetPageUnmapped(page);
	list_add(&page->buddy_list, &lists->free[order]);
}

void unmapped_list_del(unsigned long pfn)
{
	struct page *page = pfn_to_page(pfn);

	list_del(&page->buddy_list);
	__ClearPageUnmapped(page);
	set_page_private(page, 0);
}

unsigned long unmapped_list_first(const struct unmapped_lists *lists,
				  unsigned int order)
{
	const struct list_head *list = &lists->free[order];

	if (list_empty(list))
		return ULONG_MAX;
	return page_to_pfn(list_first_entry(list, struct page, buddy_list));
}

/* The order of the free block that begins with @pfn, or -1 if none does. */
int unmapped_list_order(unsigned long pfn, int nid)
{
	struct page *page = pfn_to_online_page(pfn);

	if (!page || !PageUnmapped(page) || page_to_nid(page) != nid)
		return -1;
	return page_private(page);
}

/* What pages.rs does to pages. */

unsigned int unmapped_pageblock_order(void)
{
	return pageblock_order;
}

/**
 * unmapped_block_alloc - allocate a block that is to leave the direct map
 * @gfp: flags of the caller
 * @nodes: nodes that the caller may use, or NULL for all
 * @nid: node that is preferred
 * @order: order of the block
 * @wanted: order that the caller cannot do without
 *
 * For more than is wanted nobody is disturbed, except that memory is compacted
 * for a block that a single entry of the direct map has mapped.
 *
 * Return: the first page frame number of cleared pages, or ULONG_MAX.
 */
unsigned long unmapped_block_alloc(gfp_t gfp, nodemask_t *nodes, int nid,
				   unsigned int order, unsigned int wanted)
{
	const gfp_t kept = __GFP_RECLAIM | __GFP_IO | __GFP_FS | __GFP_NOWARN |
		__GFP_RETRY_MAYFAIL | __GFP_NORETRY | __GFP_NOFAIL | __GFP_HIGH |
		__GFP_MEMALLOC | __GFP_NOMEMALLOC | __GFP_HARDWALL | __GFP_THISNODE;
	struct page *page;

	gfp = (gfp & kept) | __GFP_ZERO;
	if (order > wanted) {
		gfp &= ~(__GFP_RETRY_MAYFAIL | __GFP_NOFAIL | __GFP_HIGH |
			 __GFP_MEMALLOC | __GFP_KSWAPD_RECLAIM);
		gfp |= __GFP_NORETRY | __GFP_NOWARN | __GFP_NOMEMALLOC |
			__GFP_THISNODE;
		if (order < PMD_ORDER)
			gfp &= ~__GFP_DIRECT_RECLAIM;
	}
	page = __alloc_frozen_pages(gfp, order, nid, nodes, ALLOC_DEFAULT);
	if (!page)
		return ULONG_MAX;
	unmapped_page_adopt(page, order);
	return page_to_pfn(page);
}

void unmapped_block_free(unsigned long pfn, unsigned int order)
{
	unmapped_page_release(pfn_to_page(pfn), order);
}

/**
 * unmapped_unmap - take a block out of the direct map, and out of all TLBs
 * @pfn: first page
 * @order: order of the block
 *
 * Return: 0, or an error; then part of the block may have left the direct map.
 */
int unmapped_unmap(unsigned long pfn, unsigned int order)
{
	struct page *page = pfn_to_page(pfn);
	unsigned long start = (unsigned long)page_address(page);
	int err;

	if (READ_ONCE(unmapped_alloc_paused))
		return -EBUSY;
	err = set_direct_map_valid_noflush(page, 1U << order, false);
	flush_tlb_kernel_range(start, start + (PAGE_SIZE << order));
	return err;
}

int unmapped_restore(unsigned long pfn, unsigned int order, pte_t **table)
{
	return set_direct_map_restore_noflush(pfn_to_page(pfn), 1U << order, table);
}

void unmapped_collapse(unsigned long pfn, unsigned int order)
{
	set_direct_map_collapse(pfn_to_page(pfn), 1U << order);
}

pte_t *unmapped_table_alloc(void)
{
	return pte_alloc_one_kernel(&init_mm);
}

void unmapped_table_free(pte_t *table)
{
	pte_free_kernel(&init_mm, table);
}

bool unmapped_is_poisoned(unsigned long pfn)
{
	return PageHWPoison(pfn_to_page(pfn));
}

/* Whether a page cannot be handed out, since its memory goes offline. */
bool unmapped_is_leaving(unsigned long pfn)
{
	return is_migrate_isolate_page(pfn_to_page(pfn));
}

/* Tells the hook of the page allocator which pageblocks it has to look at. */
void unmapped_mark(unsigned long pfn, unsigned int order, bool unmapped)
{
	unsigned long end = pfn + (1UL << order);

	for (pfn = pageblock_start_pfn(pfn); pfn < end; pfn += pageblock_nr_pages) {
		struct page *page = pfn_to_page(pfn);

		if (unmapped)
			set_pfnblock_bit(page, pfn, PB_unmapped);
		else
			clear_pfnblock_bit(page, pfn, PB_unmapped);
	}
}

int unmapped_nid(unsigned long pfn)
{
	return pfn_to_nid(pfn);
}

/* What nobody wants. */

/*
 * For how long pages are kept that nobody wants, in milliseconds; up to twice
 * that passes until they are given back. 0 keeps them until memory is short.
 */
static unsigned int unmapped_keep_ms = 20000;

static void unmapped_age_work_fn(struct work_struct *work);
static DECLARE_DELAYED_WORK(unmapped_age_work, unmapped_age_work_fn);

static void unmapped_age_queue(void)
{
	unsigned int ms = READ_ONCE(unmapped_keep_ms);

	if (ms && !delayed_work_pending(&unmapped_age_work))
		queue_delayed_work(system_dfl_wq, &unmapped_age_work, msecs_to_jiffies(ms));
}

static void unmapped_age_work_fn(struct work_struct *work)
{
	unsigned long left = 0;
	int nid;

	if (!READ_ONCE(unmapped_keep_ms))
		return;
	for_each_node_state(nid, N_MEMORY)
		left += unmapped_alloc_age(nid);
	if (left)
		unmapped_age_queue();
}

static int unmapped_keep_set(const char *value, const struct kernel_param *kp)
{
	int err = param_set_uint(value, kp);

	/* On the command line there is no cache yet. */
	if (!err && unmapped_alloc_ready) {
		cancel_delayed_work(&unmapped_age_work);
		unmapped_age_queue();
	}
	return err;
}

static const struct kernel_param_ops unmapped_keep_ops = {
	.set = unmapped_keep_set,
	.get = param_get_uint,
};
module_param_cb(keep_ms, &unmapped_keep_ops, &unmapped_keep_ms, 0644);

/* Free pages of the cache are as good as available: /proc/meminfo says so. */
void unmapped_count(int nid, long total, long free)
{
	pg_data_t *pgdat = NODE_DATA(nid);

	if (total) {
		atomic_long_add(total, &unmapped_total);
		mod_node_page_state(pgdat, NR_UNMAPPED_ALLOC, total);
	}
	if (free)
		mod_node_page_state(pgdat, NR_KERNEL_MISC_RECLAIMABLE, free);
	if (free > 0)
		unmapped_age_queue();
}

void unmapped_event(enum unmapped_event event)
{
	static const enum vm_event_item items[] = {
		[UNMAPPED_EVENT_REFILL]		= UNMAPPED_REFILL,
		[UNMAPPED_EVENT_REFILL_FAIL]	= UNMAPPED_REFILL_FAIL,
		[UNMAPPED_EVENT_SPLIT]		= UNMAPPED_SPLIT,
		[UNMAPPED_EVENT_RELEASE]	= UNMAPPED_RELEASE,
	};

	count_vm_event(items[event]);
}

/*
 * Whoever may wait for filesystems and I/O holds nothing that those who refill
 * wait for.
 */
bool unmapped_may_wait(gfp_t gfp)
{
	const gfp_t all = __GFP_DIRECT_RECLAIM | __GFP_IO | __GFP_FS;

	return (gfp & all) == all;
}

void unmapped_cond_resched(void)
{
	cond_resched();
}

unsigned int unmapped_possible_nodes(void)
{
	return nr_node_ids;
}

/* Larger entries in the direct map. */

static void unmapped_collapse_work_fn(struct work_struct *work)
{
	unmapped_alloc_collapse();
}
static DECLARE_WORK(unmapped_collapse_work, unmapped_collapse_work_fn);

void unmapped_queue_collapse(void)
{
	queue_work(system_dfl_wq, &unmapped_collapse_work);
}

/*
 * A window for each CPU, through which it clears pages that have no address.
 * What a window shows changes only in the TLB of its own CPU.
 */
struct unmapped_window {
	unsigned long addr;
	pte_t *pte;
};
static DEFINE_PER_CPU(struct unmapped_window, unmapped_window);

/**
 * unmapped_page_map - show a page that has no address to this CPU
 * @page: the page
 *
 * Disables preemption until unmapped_page_unmap(). For code that runs when
 * nothing else does, and has to have a look at any page.
 *
 * Context: process context, once unmapped_alloc_is_ready().
 * Return: where the page is.
 */
void *unmapped_page_map(struct page *page)
{
	struct unmapped_window *window = get_cpu_ptr(&unmapped_window);

	set_pte(window->pte, mk_pte(page, PAGE_KERNEL));
	return (void *)window->addr;
}

/**
 * unmapped_page_unmap - undo unmapped_page_map()
 * @address: what it returned
 */
void unmapped_page_unmap(void *address)
{
	struct unmapped_window *window = this_cpu_ptr(&unmapped_window);

	pte_clear(&init_mm, window->addr, window->pte);
	flush_tlb_one_kernel(window->addr);
	put_cpu_ptr(&unmapped_window);
}

static void unmapped_clear_page(struct page *page)
{
	void *address = unmapped_page_map(page);

	clear_page(address);
	unmapped_page_unmap(address);
}

/**
 * unmapped_clear - clear pages that are not in the direct map
 * @pfn: first page
 * @order: order of the block
 *
 * Context: process context; may sleep between two pages.
 */
void unmapped_clear(unsigned long pfn, unsigned int order)
{
	unsigned long end = pfn + (1UL << order);

	for (; pfn < end; pfn++) {
		unmapped_clear_page(pfn_to_page(pfn));
		cond_resched();
	}
}

static int __init unmapped_window_init(pte_t *pte, unsigned long addr, void *data)
{
	unsigned long start = *(unsigned long *)data;
	unsigned long index = (addr - start) >> PAGE_SHIFT;
	int cpu;

	for_each_possible_cpu(cpu)
		if (!index--)
			break;
	per_cpu(unmapped_window, cpu).addr = addr;
	per_cpu(unmapped_window, cpu).pte = pte;
	return 0;
}

static int __init unmapped_windows_init(void)
{
	unsigned long size = num_possible_cpus() * PAGE_SIZE;
	struct vm_struct *area = get_vm_area(size, VM_MAP);
	unsigned long start;

	if (!area)
		return -ENOMEM;
	start = (unsigned long)area->addr;
	return apply_to_page_range(&init_mm, start, size, unmapped_window_init, &start);
}

/* Others that change what is mapped. */

/* Gives back all that is free, including what is just being sorted out. */
static void unmapped_release_node(int nid)
{
	irq_work_sync(&unmapped_drain_irq_work);
	flush_work(&unmapped_drain);
	unmapped_alloc_release_all(nid);
}

/*
 * The memory of free pages goes: those that are cached have to be mapped and
 * free before. Pages in use keep their memory from going offline.
 */
static int unmapped_memory_notify(struct notifier_block *nb,
				  unsigned long action, void *data)
{
	struct memory_notify *arg = data;

	switch (action) {
	case MEM_GOING_OFFLINE:
		unmapped_release_node(pfn_to_nid(arg->start_pfn));
		break;
	case MEM_OFFLINE:
		/* The page tables go next: nobody may be about to free one. */
		unmapped_alloc_collapse();
		flush_work(&unmapped_collapse_work);
		break;
	}
	return NOTIFY_OK;
}

static void unmapped_release_everywhere(void)
{
	int nid;

	for_each_node_state(nid, N_MEMORY)
		unmapped_release_node(nid);
}

/*
 * What is outside the direct map is not for the image, unless its owner says so.
 * hibernate() refuses by itself while memfd_secret(2) is in use; here all others
 * are found.
 */
static int unmapped_pm_notify(struct notifier_block *nb, unsigned long action,
			      void *data)
{
	long pages;

	switch (action) {
	case PM_HIBERNATION_PREPARE:
		WRITE_ONCE(unmapped_alloc_paused, true);
		synchronize_srcu(&unmapped_refills);
		/* These have references to pages that are otherwise free. */
		lru_add_drain_all();
		unmapped_release_everywhere();
		pages = atomic_long_read(&unmapped_total) - atomic_long_read(&unmapped_saved);
		if (pages <= 0)
			break;
		/* Whoever fails here is not told how it ends. */
		WRITE_ONCE(unmapped_alloc_paused, false);
		pr_err("cannot hibernate: %ld pages outside the direct map are in use or broken; stop their users first\n",
		       pages);
		return notifier_from_errno(-EBUSY);
	case PM_POST_HIBERNATION:
		WRITE_ONCE(unmapped_alloc_paused, false);
		break;
	}
	return NOTIFY_OK;
}

/* /sys/kernel/debug/unmapped_alloc */

static void unmapped_show_row(struct seq_file *m, const char *name,
			      const unsigned long *values)
{
	unsigned int order;

	seq_printf(m, "%-10s", name);
	for (order = 0; order < NR_PAGE_ORDERS; order++)
		seq_printf(m, "%5lu ", values[order]);
	seq_putc(m, '\n');
}

static void unmapped_show_table(struct seq_file *m,
				const struct unmapped_stats *stats)
{
	unsigned long orders[NR_PAGE_ORDERS];
	unsigned int order;

	for (order = 0; order < NR_PAGE_ORDERS; order++)
		orders[order] = order;
	unmapped_show_row(m, "Order:", orders);
	unmapped_show_row(m, "Free:", stats->free);
	unmapped_show_row(m, "Cached:", stats->cached);
	unmapped_show_row(m, "Released:", stats->released);
}

static void unmapped_add_stats(struct unmapped_stats *sum,
			       const struct unmapped_stats *stats)
{
	unsigned int order;

	for (order = 0; order < NR_PAGE_ORDERS; order++) {
		sum->free[order] += stats->free[order];
		sum->cached[order] += stats->cached[order];
		sum->released[order] += stats->released[order];
	}
}

static int unmapped_alloc_show(struct seq_file *m, void *private)
{
	struct unmapped_stats sum = {}, stats;
	int nid;

	for_each_node_state(nid, N_MEMORY)
		if (unmapped_alloc_stats(nid, &stats))
			unmapped_add_stats(&sum, &stats);
	seq_printf(m, "MAX_ORDER: %d\n\n", NR_PAGE_ORDERS);
	unmapped_show_table(m, &sum);

	for_each_node_state(nid, N_MEMORY) {
		if (!unmapped_alloc_stats(nid, &stats))
			continue;
		seq_printf(m, "\nNode %d\n", nid);
		unmapped_show_table(m, &stats);
	}
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(unmapped_alloc);

static int __init unmapped_alloc_glue_init(void)
{
	int err = unmapped_windows_init();

	if (!err)
		err = unmapped_alloc_init();
	if (err) {
		pr_err("no cache of unmapped pages: error %d\n", err);
		return err;
	}
	hotplug_memory_notifier(unmapped_memory_notify, DEFAULT_CALLBACK_PRI);
	pm_notifier(unmapped_pm_notify, 0);
	unmapped_alloc_ready = true;
	/* For callers that hold locks, and so cannot call it. */
	if (IS_ENABLED(CONFIG_EXECMEM_RUST) || IS_ENABLED(CONFIG_GFP_UNMAPPED))
		return unmapped_alloc_enable();
	return 0;
}
/* Before whoever allocates text for the network or tracing. */
core_initcall(unmapped_alloc_glue_init);

static int __init unmapped_alloc_debugfs_init(void)
{
	debugfs_create_file("unmapped_alloc", 0444, NULL, NULL,
			    &unmapped_alloc_fops);
	return 0;
}
late_initcall(unmapped_alloc_debugfs_init);
