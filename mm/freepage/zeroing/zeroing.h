/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The zeroer: what the C and the Rust code of mm/freepage/zeroing share. The
 * hooks of the page allocator are in page_zero.h.
 */
#ifndef _MM_ZEROING_H
#define _MM_ZEROING_H

#include <linux/hugetlb.h>
#include <linux/mmzone.h>
#include <linux/percpu-defs.h>
#include <linux/spinlock.h>
#include <linux/types.h>
#include <linux/vm_event_item.h>

/**
 * enum page_zero_result - how an allocation that wanted zeroes went
 * @PAGE_ZERO_RESULT_HIT: all was zero
 * @PAGE_ZERO_RESULT_PARTIAL: some of it
 * @PAGE_ZERO_RESULT_MISS: nothing
 * @NR_PAGE_ZERO_RESULTS: number of results
 */
enum page_zero_result {
	PAGE_ZERO_RESULT_HIT,
	PAGE_ZERO_RESULT_PARTIAL,
	PAGE_ZERO_RESULT_MISS,
	NR_PAGE_ZERO_RESULTS,
};

/**
 * struct page_zero_counts - what happened on a CPU
 * @results: allocations that wanted zeroes, by order
 * @false_claims: pages that were claimed to be zero, and were not
 */
struct page_zero_counts {
	unsigned long results[NR_PAGE_ORDERS][NR_PAGE_ZERO_RESULTS];
	unsigned long false_claims;
};

DECLARE_PER_CPU(struct page_zero_counts, page_zero_counts);
extern long __percpu *page_zero_zeroed;

/**
 * struct page_zero_settings - what the administrator sets
 * @delay_ms: how often a zeroer that sleeps looks whether there is work, in ms
 * @min_order: smallest block that is cleared
 * @low_percent: part of a node's memory; the zeroer begins if less is zeroed
 * @high_percent: it ends when so much is
 * @cpu_percent: the time that it takes of a CPU, at most
 * @rate_mib: MiB that it clears in a second, at most; 0: any number
 */
struct page_zero_settings {
	unsigned int delay_ms;
	unsigned int min_order;
	unsigned int low_percent;
	unsigned int high_percent;
	unsigned int cpu_percent;
	unsigned int rate_mib;
};

extern struct page_zero_settings page_zero_settings;

/**
 * struct page_zero_pool - the pools of hugetlb on a node
 * @lock: held while a part of @folio is cleared
 * @folio: huge page that is being cleared, in its list. Changes with hugetlb_lock
 *	and @lock held
 * @next: its first page that is not cleared yet
 * @zeroed: huge pages in the lists that are zero, by the index of their hstate;
 *	protected by hugetlb_lock
 */
struct page_zero_pool {
	spinlock_t lock;
	struct folio *folio;
	unsigned long next;
#ifdef CONFIG_HUGETLB_PAGE
	unsigned long zeroed[HUGE_MAX_HSTATE];
#endif
};

/* mm/freepage/zeroing/state.c, for clear.rs, zone.rs and pool.c */
unsigned long page_zero_clear(unsigned long pfn, unsigned long nr);
void page_zero_clear_cold(void *start, unsigned long nr);
bool page_zero_needed(unsigned long pfn, unsigned long nr);
bool page_zero_wanted(unsigned long pfn, unsigned long nr);

/* mm/freepage/zeroing/thread.c, for zone.rs */
bool page_zero_keeps(struct zone *zone);

/* mm/freepage/zeroing/thread.c, for clear.rs */
unsigned long page_zero_nr_zeroed(int nid);
unsigned long page_zero_nr_managed(int nid);
unsigned long page_zero_nr_free(int nid);
unsigned long page_zero_nr_missed(void);
void page_zero_look(int nid);
bool page_zero_collect(int nid);
int page_zero_zone_nid(struct zone *zone);
u64 page_zero_runtime(void);

/* mm/freepage/zeroing/thread.c, for pool.c */
struct page_zero_pool *page_zero_pool(int nid);

/* mm/freepage/zeroing/pool.c, for thread.c and clear.rs */
#ifdef CONFIG_HUGETLB_PAGE
long page_zero_pool_clear(int nid, struct hstate *only);
#else
static inline long page_zero_pool_clear(int nid, struct hstate *only)
{
	return -ENOENT;
}
#endif

/* mm/freepage/zeroing/thread.c, for sysfs.c */
unsigned long page_zero_events(enum vm_event_item item);
bool page_zero_enabled(void);
int page_zero_set_enabled(bool enabled);
int page_zero_flush(u64 bytes);
void page_zero_wake(void);

/* mm/freepage/zeroing/clear.rs, for sysfs.c */
u64 page_zero_longest_hold_ns(void);

/* mm/freepage/zeroing/clear.rs, for thread.c */
void *page_zero_node_new(int nid);
unsigned long page_zero_node_step(void *node);
void page_zero_node_restart(void *node);
long page_zero_node_flush(void *node);

#endif /* _MM_ZEROING_H */
