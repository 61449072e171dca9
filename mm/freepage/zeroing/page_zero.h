/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Free pages that are known to be zero: the hooks.
 *
 * PG_zeroed on a free page says that it is zero, and nothing else does. The
 * flag is on each base page, so splits, merges and lists need not know of it.
 *
 *   set	by page_zero_mark(), on pages that are in no list and that nobody
 *		owns, after they were cleared: by the zeroer, by init_on_free
 *   taken off	when a page is freed (PAGE_FLAGS_CHECK_AT_PREP), and when it is
 *		allocated (page_zero_alloc() in post_alloc_hook(), which every
 *		allocation passes: per-CPU lists, bulk, contiguous, compaction)
 *   dropped	by page_zero_forget(), where the content may change without an
 *		allocation: before pages are reported to a host, before a
 *		hibernation image is made, for broken and for offline memory
 *
 * So an allocated page does not have it, and a page that was allocated since it
 * was cleared cannot have it, whatever list it is on. One thing is handed on: a
 * large user folio, all of whose pages were zero, has PG_zeroed on its second
 * page until folio_zero_user() or its like takes it off, or it is freed. Only
 * who just allocated a folio may ask for that.
 *
 * Until zeroing is enabled for the first time each hook is a no-op. It stays
 * active from then on, since pages that carry the flag may be anywhere.
 */
#ifndef _MM_PAGE_ZERO_H
#define _MM_PAGE_ZERO_H

#include <linux/cacheinfo.h>
#include <linux/gfp_types.h>
#include <linux/jump_label.h>
#include <linux/mm.h>
#include <linux/page_zero.h>

/*
 * An alias of a flag that has no meaning on a free page, and that nothing looks
 * at on the second page of a folio.
 */
#define PG_zeroed	PG_private_2

/*
 * What free pages may have, unlike all else in PAGE_FLAGS_CHECK_AT_PREP, and
 * the second page of a folio that is freed.
 */
#ifdef CONFIG_PAGE_ZERO
#define PAGE_FLAGS_FREE_STATE	(1UL << PG_zeroed)
#else
#define PAGE_FLAGS_FREE_STATE	0UL
#endif

#ifdef CONFIG_PAGE_ZERO
DECLARE_STATIC_KEY_FALSE(page_zero_key);
DECLARE_STATIC_KEY_FALSE(page_zero_marks_key);

void page_zero_mark(struct page *page, unsigned long nr);
bool __page_zero_alloc(struct page *page, unsigned int order, gfp_t gfp, bool init);
bool __folio_take_zeroed(struct folio *folio);

/**
 * page_zero_in_use - whether pages may be known to be zero
 *
 * To be asked before page_zero_alloc(): the no-op that it costs if not.
 *
 * Return: true from the first time that zeroing is enabled, or flushed, on.
 */
static __always_inline bool page_zero_in_use(void)
{
	return static_branch_unlikely(&page_zero_key);
}

/**
 * page_zero_alloc - pages are allocated
 * @page: first page
 * @order: order of the allocation
 * @gfp: its flags
 * @init: whether its pages have to be zero
 *
 * Clears, if @init, those pages that are not known to be zero.
 *
 * Context: any; the pages belong to the caller, and are accessible.
 * Return: whether the caller has to clear all of the pages.
 */
static __always_inline bool page_zero_alloc(struct page *page, unsigned int order,
					    gfp_t gfp, bool init)
{
	if (!order && !init && likely(!test_bit(PG_zeroed, &page->flags.f)))
		return false;
	return __page_zero_alloc(page, order, gfp, init);
}

/**
 * page_is_zeroed - whether a page that nobody owns is known to be zero
 * @page: the page
 *
 * Return: true if it is.
 */
static inline bool page_is_zeroed(struct page *page)
{
	return page_zero_in_use() && test_bit(PG_zeroed, &page->flags.f);
}

/**
 * page_zero_cleared - pages were cleared as they were freed
 * @page: first page
 * @order: order of the block, which is not on a list yet
 */
static inline void page_zero_cleared(struct page *page, unsigned int order)
{
	if (static_branch_unlikely(&page_zero_marks_key))
		page_zero_mark(page, 1UL << order);
}

/* Where the kernel's own mapping does not say what a user will see */
static inline bool page_zero_aliases(void)
{
	return cpu_dcache_is_aliasing() || cpu_icache_is_aliasing();
}

/**
 * folio_take_zeroed - ask once whether a new folio is zero
 * @folio: folio that the caller allocated, and did not write to
 *
 * Always false for order 0: use __GFP_ZERO there.
 *
 * Return: true if @folio need not be cleared.
 */
static inline bool folio_take_zeroed(struct folio *folio)
{
	if (!page_zero_in_use())
		return false;
	return __folio_take_zeroed(folio);
}

/**
 * folio_forget_zeroed - a folio that was not freed may not be zero any more
 * @folio: folio that waits to be used again, as those of hugetlb do
 */
static inline void folio_forget_zeroed(struct folio *folio)
{
	if (page_zero_in_use() && folio_test_large(folio) &&
	    test_bit(PG_zeroed, &folio_page(folio, 1)->flags.f))
		clear_bit(PG_zeroed, &folio_page(folio, 1)->flags.f);
}

struct hstate;

/* mm/freepage/zeroing/pool.c, for mm/hugetlb.c and mm/hugetlb_sysfs.c */
void __page_zero_pool_add(struct hstate *h, struct folio *folio);
void __page_zero_pool_del(struct hstate *h, struct folio *folio);
unsigned long page_zero_pool_nr(int nid, struct hstate *h);

/* mm/freepage/zeroing/thread.c, for mm/hugetlb_sysfs.c */
int page_zero_pool_flush(int nid, struct hstate *h, unsigned long nr);

/**
 * page_zero_pool_add - a huge page was put into its pool
 * @h: size of the pool
 * @folio: the huge page
 *
 * Context: hugetlb_lock is held.
 */
static inline void page_zero_pool_add(struct hstate *h, struct folio *folio)
{
	if (page_zero_in_use())
		__page_zero_pool_add(h, folio);
}

/**
 * page_zero_pool_del - a huge page is about to be taken from its pool
 * @h: size of the pool
 * @folio: the huge page
 *
 * Context: hugetlb_lock is held.
 */
static inline void page_zero_pool_del(struct hstate *h, struct folio *folio)
{
	if (page_zero_in_use())
		__page_zero_pool_del(h, folio);
}

/**
 * page_zero_gfp - how to allocate an order-0 user page that has to be zero
 *
 * Return: __GFP_ZERO, if the allocator may know of zero pages; the caller has
 * then nothing to clear. Else 0.
 */
static inline gfp_t page_zero_gfp(void)
{
	return page_zero_in_use() && !page_zero_aliases() ? __GFP_ZERO : 0;
}
#else
static __always_inline bool page_zero_in_use(void)
{
	return false;
}

static __always_inline bool page_zero_alloc(struct page *page, unsigned int order,
					    gfp_t gfp, bool init)
{
	return init;
}

static inline bool page_is_zeroed(struct page *page)
{
	return false;
}

static inline void page_zero_cleared(struct page *page, unsigned int order)
{
}

static inline bool folio_take_zeroed(struct folio *folio)
{
	return false;
}

static inline void folio_forget_zeroed(struct folio *folio)
{
}

static inline void page_zero_pool_add(struct hstate *h, struct folio *folio)
{
}

static inline void page_zero_pool_del(struct hstate *h, struct folio *folio)
{
}

static inline gfp_t page_zero_gfp(void)
{
	return 0;
}
#endif /* CONFIG_PAGE_ZERO */

#endif /* _MM_PAGE_ZERO_H */
