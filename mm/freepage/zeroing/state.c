// SPDX-License-Identifier: GPL-2.0
/*
 * Which free pages are known to be zero: sets the flag, takes it off, counts,
 * and checks it if asked to. When it may be set is in page_zero.h; nothing here
 * decides which page is cleared.
 */
#include <linux/cpufeature.h>
#include <linux/kasan.h>
#include <linux/mm.h>
#include <linux/page-isolation.h>
#include <linux/string.h>

#include "page_zero.h"
#include "zeroing.h"

#define CREATE_TRACE_POINTS
#define CREATE_RUST_TRACE_POINTS
#include <trace/events/page_zero.h>

DEFINE_STATIC_KEY_FALSE(page_zero_key);

/* The same for those that set the flag as pages are freed; enabled later. */
DEFINE_STATIC_KEY_FALSE(page_zero_marks_key);

DEFINE_PER_CPU(struct page_zero_counts, page_zero_counts);

/* Pages of each node that became zeroed on a CPU, less those that ceased to be */
long __percpu *page_zero_zeroed;

/* Exact, unlike the counters of /proc/vmstat, and usable in any context. */
static void count_zeroed(struct page *page, long nr)
{
	this_cpu_add(page_zero_zeroed[page_to_nid(page)], nr);
}

/* Blocks above the largest order are counted with it. */
static void count_result(unsigned int order, enum page_zero_result result)
{
	order = min_t(unsigned int, order, MAX_PAGE_ORDER);
	this_cpu_inc(page_zero_counts.results[order][result]);
}

static void count_wanted(unsigned int order, unsigned long zeroed)
{
	unsigned long nr = 1UL << order;

	count_result(order, zeroed == nr ? PAGE_ZERO_RESULT_HIT :
			    zeroed ? PAGE_ZERO_RESULT_PARTIAL :
				     PAGE_ZERO_RESULT_MISS);
	count_vm_events(PAGE_ZERO_USED, zeroed);
	count_vm_events(PAGE_ZERO_MISSED, nr - zeroed);
}

#ifdef CONFIG_PAGE_ZERO_VERIFY
/* Whether a page that is claimed to be zero is; a claim is not believed twice. */
static bool claim_holds(struct page *page, unsigned int order, const char *claim)
{
	const u8 *start = page_address(page);
	const u8 *at;

	kasan_disable_current();
	at = memchr_inv(start, 0, PAGE_SIZE);
	kasan_enable_current();
	if (likely(!at))
		return true;

	this_cpu_inc(page_zero_counts.false_claims);
	dump_page(page, "page_zero: the content is not zero");
	WARN(1, "page_zero: PFN %#lx, of an allocation of order %u, has %#x at offset %#lx: not %s\n",
	     page_to_pfn(page), order, *at, (unsigned long)(at - start), claim);
	return false;
}
#else
static bool claim_holds(struct page *page, unsigned int order, const char *claim)
{
	return true;
}
#endif

static void clear_run(struct page *page, unsigned long nr)
{
	kasan_disable_current();
	clear_pages(page_address(page), nr);
	kasan_enable_current();
}

/**
 * page_zero_clear_cold - clear what nobody will read soon
 * @start: address of the first page
 * @nr: number of pages
 *
 * CLZERO does not read the cache lines, nor leave them in the caches: twice the
 * speed of REP STOSB at 2 MiB on the machine that this was measured on. MOVNTI is
 * slower than either.
 *
 * Context: any. Later stores by this CPU are ordered after it.
 */
void page_zero_clear_cold(void *start, unsigned long nr)
{
#ifdef CONFIG_X86
	if (boot_cpu_has(X86_FEATURE_CLZERO)) {
		void *end = start + nr * PAGE_SIZE;

		for (; start < end; start += 64)
			asm volatile("clzero" : : "a" (start) : "memory");
		/* Ordered weakly: before the flag that says so. */
		wmb();
		return;
	}
#endif
	clear_pages(start, nr);
}

/* Takes the flag off. Atomic: the flag of a broken page is set without a lock. */
static bool take_flag(struct page *page)
{
	if (!test_bit(PG_zeroed, &page->flags.f))
		return false;
	clear_bit(PG_zeroed, &page->flags.f);
	return true;
}

/* Of a folio for a user so much is cleared, at most, to make all of it zero. */
#define FEW_PARTS	8

/* Clears pages between others that are zero, if not more than @most; whether it did. */
static bool clear_gap(struct page *page, unsigned long nr, unsigned long *most)
{
	if (nr > *most)
		return false;
	*most -= nr;
	clear_run(page, nr);
	return true;
}

/**
 * __page_zero_alloc - see page_zero_alloc()
 * @page: first page
 * @order: order of the allocation
 * @gfp: its flags
 * @init: whether its pages have to be zero
 *
 * Return: whether the caller has to clear all of the pages.
 */
bool __page_zero_alloc(struct page *page, unsigned int order, gfp_t gfp, bool init)
{
	const gfp_t user_folio = __GFP_COMP | __GFP_MOVABLE;
	bool is_folio = order && (gfp & user_folio) == user_folio;
	unsigned long nr = 1UL << order;
	unsigned long most = init ? nr : is_folio ? nr / FEW_PARTS : 0;
	unsigned long zeroed = 0, dirty = 0;
	bool whole = true;
	long taken = 0;
	unsigned long i;

	for (i = 0; i < nr; i++) {
		if (!take_flag(page + i))
			continue;
		taken++;
		if (!claim_holds(page + i, order, "zero as it was when it was cleared"))
			continue;
		/* What lies between this page and the last that was zero */
		if (dirty < i)
			whole = whole && clear_gap(page + dirty, i - dirty, &most);
		dirty = i + 1;
		zeroed++;
	}

	if (taken)
		count_zeroed(page, -taken);
	/* What is cleared when it is freed is so for other reasons. */
	if (taken && !want_init_on_free())
		count_vm_events(PAGE_ZERO_ALLOCATED, taken);
	if (init)
		count_wanted(order, zeroed);
	if (init || taken)
		trace_page_zero_alloc(page_to_pfn(page), order, zeroed, init);

	if (!zeroed)
		return init;
	if (dirty < nr)
		whole = whole && clear_gap(page + dirty, nr - dirty, &most);
	/* Users of large folios ask later, and only for whole ones. */
	if (!init && is_folio && whole)
		set_bit(PG_zeroed, &page[1].flags.f);
	return false;
}

/**
 * __folio_take_zeroed - see folio_take_zeroed()
 * @folio: folio that the caller allocated, and did not write to
 *
 * Return: true if @folio need not be cleared.
 */
bool __folio_take_zeroed(struct folio *folio)
{
	unsigned int order = folio_order(folio);
	bool zeroed = order && take_flag(folio_page(folio, 1)) && !page_zero_aliases();

	if (IS_ENABLED(CONFIG_PAGE_ZERO_VERIFY) && zeroed) {
		unsigned long i;

		for (i = 0; zeroed && i < folio_nr_pages(folio); i++)
			zeroed = claim_holds(folio_page(folio, i), order,
					     "zero as it was when it was allocated");
	}
	count_wanted(order, zeroed ? folio_nr_pages(folio) : 0);
	if (zeroed)
		trace_page_zero_take(folio_pfn(folio), order);
	return zeroed;
}

/**
 * page_zero_mark - pages are known to be zero from now on
 * @page: first page
 * @nr: number of pages, all of one node
 *
 * The caller cleared them, and has exclusive use of them: they are off the free
 * lists, and __free_pages_prepare() was passed. They get on a list by a lock,
 * which orders this after the clearing; stores that are ordered weakly (MOVNTI)
 * need a fence of their own before.
 *
 * Context: any.
 */
void page_zero_mark(struct page *page, unsigned long nr)
{
	unsigned long i;
	long marked = 0;

	for (i = 0; i < nr; i++)
		if (!test_and_set_bit(PG_zeroed, &page[i].flags.f))
			marked++;
	count_zeroed(page, marked);
}

void page_zero_forget(struct page *page, unsigned long nr)
{
	unsigned long i;
	long forgotten = 0;

	if (!page_zero_in_use())
		return;
	for (i = 0; i < nr; i++)
		forgotten += take_flag(page + i);
	if (forgotten)
		count_zeroed(page, -forgotten);
}

/* Broken pages are not touched. */
static bool is_to_be_cleared(struct page *page)
{
	return !test_bit(PG_zeroed, &page->flags.f) && !PageHWPoison(page);
}

/**
 * page_zero_needed - whether a run has pages that could be cleared
 * @pfn: first page
 * @nr: number of pages
 *
 * Context: the run is on a free list of a zone whose lock is held.
 * Return: true if a page of it is neither known to be zero nor broken.
 */
bool page_zero_needed(unsigned long pfn, unsigned long nr)
{
	struct page *page = pfn_to_page(pfn);
	struct page *end = page + nr;

	for (; page < end; page++)
		if (is_to_be_cleared(page))
			return true;
	return false;
}

/**
 * page_zero_wanted - whether a run has pages that the zeroer is to clear
 * @pfn: first page
 * @nr: number of pages; all in pageblocks of the same kind
 *
 * Not those that someone counts on to find free: cma_alloc() and its like fail if
 * a page is missing from their range, even for a while, and so does the reserve
 * of atomic allocations, which hardly ever want zeroes. Nor what is unaccepted: to
 * write to that ends the guest.
 *
 * Context: the run is on a free list of a zone whose lock is held.
 * Return: true if it has.
 */
bool page_zero_wanted(unsigned long pfn, unsigned long nr)
{
	int mt = get_pfnblock_migratetype(pfn_to_page(pfn), pfn);

	if (!migratetype_is_mergeable(mt) || !page_zero_needed(pfn, nr))
		return false;
	return !IS_ENABLED(CONFIG_UNACCEPTED_MEMORY_RUST) ||
	       !range_contains_unaccepted_memory(PFN_PHYS(pfn), nr << PAGE_SHIFT);
}

/**
 * page_zero_clear - clear those pages of a run that are not known to be zero
 * @pfn: first page; the run is off the free lists, and the caller's
 * @nr: number of pages, at most MAX_ORDER_NR_PAGES
 *
 * Context: process context; may be preempted.
 * Return: the number of pages that were cleared, and marked.
 */
unsigned long page_zero_clear(unsigned long pfn, unsigned long nr)
{
	struct page *page = pfn_to_page(pfn);
	unsigned long i, start, cleared = 0;

	for (i = 0; i < nr; i++) {
		for (start = i; i < nr && is_to_be_cleared(page + i); i++)
			;
		if (start == i)
			continue;
		page_zero_clear_cold(page_address(page + start), i - start);
		page_zero_mark(page + start, i - start);
		cleared += i - start;
	}
	count_vm_events(PAGE_ZERO_CLEARED, cleared);
	return cleared;
}
