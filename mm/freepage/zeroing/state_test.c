// SPDX-License-Identifier: GPL-2.0
/*
 * KUnit: the state of free pages through allocations, frees and flushes, in
 * random order, against a model: what was allocated as zero is zero, and no page
 * in use is known to be zero.
 */
#include <kunit/test.h>
#include <linux/gfp.h>
#include <linux/ktime.h>
#include <linux/mm.h>
#include <linux/prandom.h>
#include <linux/string.h>

#include "../../page_alloc.h"
#include "page_zero.h"
#include "zeroing.h"

#define SLOTS	64
#define STEPS	4000

struct slot {
	struct page *page;
	unsigned int order;
};

static void expect_not_marked(struct kunit *test, struct page *page, unsigned int order,
			      bool compound)
{
	unsigned long i;

	/* The second page of a large folio may say so, until it is asked. */
	for (i = 0; i < 1UL << order; i++)
		if (!(compound && i == 1))
			KUNIT_EXPECT_FALSE(test, test_bit(PG_zeroed, &page[i].flags.f));
}

static void free_slot(struct slot *slot)
{
	if (!slot->page)
		return;
	memset(page_address(slot->page), 0xa5, PAGE_SIZE << slot->order);
	__free_pages(slot->page, slot->order);
	slot->page = NULL;
}

static void allocate_slot(struct kunit *test, struct slot *slot, u32 random)
{
	static const unsigned int orders[] = { 0, 0, 0, 0, 1, 2, 3, 4, 9 };
	bool zero = random & 1, compound = random & 2, movable = random & 4;
	gfp_t gfp = GFP_KERNEL | __GFP_NOWARN | __GFP_NORETRY;
	bool taken = false;
	void *start;

	slot->order = orders[(random >> 3) % ARRAY_SIZE(orders)];
	compound &= slot->order > 0;
	gfp |= zero ? __GFP_ZERO : 0;
	gfp |= compound ? __GFP_COMP : 0;
	gfp |= movable ? __GFP_MOVABLE : 0;
	slot->page = alloc_pages(gfp, slot->order);
	if (!slot->page)
		return;

	start = page_address(slot->page);
	expect_not_marked(test, slot->page, slot->order, compound);
	if (compound)
		taken = folio_take_zeroed(page_folio(slot->page));
	if (zero || taken)
		KUNIT_EXPECT_NULL(test, memchr_inv(start, 0, PAGE_SIZE << slot->order));
	if (taken)
		KUNIT_EXPECT_TRUE(test, movable && !zero);
	/* It is asked once. */
	if (compound)
		KUNIT_EXPECT_FALSE(test, folio_take_zeroed(page_folio(slot->page)));
	expect_not_marked(test, slot->page, slot->order, false);
}

static void random_sequences(struct kunit *test)
{
	struct slot *slots = kunit_kcalloc(test, SLOTS, sizeof(*slots), GFP_KERNEL);
	struct rnd_state state;
	int i, error;

	KUNIT_ASSERT_NOT_NULL(test, slots);
	error = page_zero_flush(1);
	if (error == -EOPNOTSUPP)
		kunit_skip(test, "free pages are poisoned");
	KUNIT_ASSERT_EQ(test, error, 0);

	prandom_seed_state(&state, 0x7a65726f);
	for (i = 0; i < STEPS; i++) {
		struct slot *slot = &slots[prandom_u32_state(&state) % SLOTS];

		if (slot->page)
			free_slot(slot);
		else
			allocate_slot(test, slot, prandom_u32_state(&state));
		if (i % 64 == 0)
			KUNIT_EXPECT_EQ(test, page_zero_flush(4UL << 20), 0);
	}
	for (i = 0; i < SLOTS; i++)
		free_slot(&slots[i]);
}

/* Marked by hand, it ends in each of the ways that there are. */
static void transitions(struct kunit *test)
{
	struct page *page = alloc_pages(GFP_KERNEL, 3);
	unsigned long i;

	KUNIT_ASSERT_NOT_NULL(test, page);
	if (page_zero_flush(1))
		kunit_skip(test, "free pages are poisoned");

	page_zero_mark(page, 8);
	for (i = 0; i < 8; i++)
		KUNIT_EXPECT_TRUE(test, test_bit(PG_zeroed, &page[i].flags.f));
	KUNIT_EXPECT_FALSE(test, page_zero_needed(page_to_pfn(page), 8));

	/* Of some pages only: the others stay as they are. */
	page_zero_forget(page + 2, 3);
	for (i = 0; i < 8; i++)
		KUNIT_EXPECT_EQ(test, test_bit(PG_zeroed, &page[i].flags.f),
				i < 2 || i >= 5);
	KUNIT_EXPECT_TRUE(test, page_zero_needed(page_to_pfn(page), 8));

	/* Those that are missing are cleared, and only those. */
	memset(page_address(page), 0xa5, 8 * PAGE_SIZE);
	KUNIT_EXPECT_EQ(test, page_zero_clear(page_to_pfn(page), 8), 3);
	for (i = 0; i < 8; i++)
		KUNIT_EXPECT_EQ(test, !memchr_inv(page_address(page + i), 0, PAGE_SIZE),
				i >= 2 && i < 5);

	page_zero_forget(page, 8);
	for (i = 0; i < 8; i++)
		KUNIT_EXPECT_FALSE(test, test_bit(PG_zeroed, &page[i].flags.f));
	__free_pages(page, 3);
}

/* What is zero in part is made zero for callers that ask for it, and else left alone. */
static void partial_hits(struct kunit *test)
{
	struct page *page = alloc_pages(GFP_KERNEL, 3);
	unsigned long i, allocated, used;

	KUNIT_ASSERT_NOT_NULL(test, page);
	if (page_zero_flush(1))
		kunit_skip(test, "free pages are poisoned");

	memset(page_address(page), 0xa5, 8 * PAGE_SIZE);
	KUNIT_EXPECT_TRUE(test, page_zero_alloc(page, 3, 0, true));
	KUNIT_EXPECT_EQ(test, page_zero_clear(page_to_pfn(page + 2), 3), 3);
	KUNIT_EXPECT_EQ(test, page_zero_clear(page_to_pfn(page + 6), 1), 1);
	used = page_zero_events(PAGE_ZERO_USED);
	KUNIT_EXPECT_FALSE(test, page_zero_alloc(page, 3, 0, true));
	KUNIT_EXPECT_GE(test, page_zero_events(PAGE_ZERO_USED) - used, 4);
	KUNIT_EXPECT_NULL(test, memchr_inv(page_address(page), 0, 8 * PAGE_SIZE));

	memset(page_address(page), 0xa5, 8 * PAGE_SIZE);
	page_zero_clear(page_to_pfn(page + 2), 3);
	allocated = page_zero_events(PAGE_ZERO_ALLOCATED);
	KUNIT_EXPECT_FALSE(test, page_zero_alloc(page, 3, 0, false));
	/* What is cleared as it is freed is not in the figures. */
	if (!want_init_on_free())
		KUNIT_EXPECT_GE(test, page_zero_events(PAGE_ZERO_ALLOCATED) - allocated, 3);
	KUNIT_EXPECT_NOT_NULL(test, memchr_inv(page_address(page), 0, PAGE_SIZE));
	for (i = 0; i < 8; i++)
		KUNIT_EXPECT_FALSE(test, test_bit(PG_zeroed, &page[i].flags.f));
	__free_pages(page, 3);
}

/* A folio for a user of which all but @dirty pages are zero: whether it is whole. */
static bool is_made_whole(struct kunit *test, struct page *page, unsigned long dirty, gfp_t gfp)
{
	unsigned long pfn = page_to_pfn(page);
	bool whole;

	memset(page_address(page), 0xa5, 16 * PAGE_SIZE);
	/* The first is dirty, one in between, and the last ones */
	page_zero_clear(pfn + 1, 4);
	page_zero_clear(pfn + 6, 12 - dirty);
	KUNIT_EXPECT_FALSE(test, page_zero_alloc(page, 4, gfp, false));
	whole = folio_take_zeroed(page_folio(page));
	KUNIT_EXPECT_EQ(test, whole, !memchr_inv(page_address(page), 0, 16 * PAGE_SIZE));
	return whole;
}

static void nearly_zero(struct kunit *test)
{
	struct page *page = alloc_pages(GFP_HIGHUSER_MOVABLE | __GFP_COMP, 4);

	KUNIT_ASSERT_NOT_NULL(test, page);
	if (page_zero_flush(1))
		kunit_skip(test, "free pages are poisoned");

	/* What it was when it was allocated ends with the first write. */
	folio_take_zeroed(page_folio(page));
	KUNIT_EXPECT_TRUE(test, is_made_whole(test, page, 2, GFP_HIGHUSER_MOVABLE | __GFP_COMP));
	KUNIT_EXPECT_FALSE(test, is_made_whole(test, page, 3, GFP_HIGHUSER_MOVABLE | __GFP_COMP));
	KUNIT_EXPECT_FALSE(test, is_made_whole(test, page, 2, GFP_KERNEL | __GFP_COMP));
	__free_pages(page, 4);
}

#define SPEED_BYTES	(32UL << 20)

/* Gets SPEED_BYTES in blocks of @order, and returns the time that it took in ns. */
static u64 allocate_all(struct kunit *test, struct page **pages, unsigned int order)
{
	unsigned long i, nr = SPEED_BYTES >> (PAGE_SHIFT + order);
	u64 begin = ktime_get_ns(), time;

	for (i = 0; i < nr; i++)
		pages[i] = alloc_pages(GFP_KERNEL | __GFP_ZERO | __GFP_NOWARN, order);
	time = ktime_get_ns() - begin;

	for (i = 0; i < nr; i++) {
		if (!pages[i])
			continue;
		memset(page_address(pages[i]), 0xa5, PAGE_SIZE << order);
		__free_pages(pages[i], order);
	}
	/* What is on the lists of the CPU is not cleared in advance. */
	drain_all_pages(NULL);
	return time;
}

/* Says what it is worth. On UML, or on hardware: an emulator does not know. */
static void speed(struct kunit *test)
{
	unsigned long nr = SPEED_BYTES >> PAGE_SHIFT;
	struct page **pages = kunit_kcalloc(test, nr, sizeof(*pages), GFP_KERNEL);
	static const unsigned int orders[] = { 0, 4, 9 };
	unsigned int i, round;

	KUNIT_ASSERT_NOT_NULL(test, pages);
	if (page_zero_flush(1))
		kunit_skip(test, "free pages are poisoned");

	for (i = 0; i < ARRAY_SIZE(orders); i++) {
		u64 cleared = U64_MAX, zeroed = U64_MAX;

		for (round = 0; round < 5; round++) {
			allocate_all(test, pages, orders[i]);
			cleared = min(cleared, allocate_all(test, pages, orders[i]));
			KUNIT_EXPECT_EQ(test, page_zero_flush(U64_MAX >> 1), 0);
			zeroed = min(zeroed, allocate_all(test, pages, orders[i]));
		}
		kunit_info(test, "order %u: %lu MiB in %llu us, or %llu us if zeroed\n",
			   orders[i], SPEED_BYTES >> 20, cleared / NSEC_PER_USEC,
			   zeroed / NSEC_PER_USEC);
	}
}

static struct kunit_case page_zero_cases[] = {
	KUNIT_CASE(transitions),
	KUNIT_CASE(partial_hits),
	KUNIT_CASE(nearly_zero),
	KUNIT_CASE(random_sequences),
	KUNIT_CASE_SLOW(speed),
	{}
};

static struct kunit_suite page_zero_suite = {
	.name = "page_zero",
	.test_cases = page_zero_cases,
};
kunit_test_suite(page_zero_suite);
