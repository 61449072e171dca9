/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Free pages that are known to be zero, as seen from outside of mm/. How it
 * works is in mm/freepage/zeroing/page_zero.h.
 */
#ifndef _LINUX_PAGE_ZERO_H
#define _LINUX_PAGE_ZERO_H

#include <linux/page-flags.h>
#include <linux/page_ref.h>

/**
 * page_flag_means_zeroed - whether PG_private_2 of a page is PG_zeroed
 * @page: the page, or a copy of it
 *
 * For whoever shows flags by their names: on a page that nobody owns it is.
 *
 * Return: true if it is PG_zeroed, and set.
 */
static inline bool page_flag_means_zeroed(const struct page *page)
{
	return IS_ENABLED(CONFIG_PAGE_ZERO) && !page_ref_count(page) &&
	       test_bit(PG_private_2, &page->flags.f);
}

#ifdef CONFIG_PAGE_ZERO
/**
 * page_zero_forget - take pages for pages of unknown content
 * @page: first page; free, or off the free lists
 * @nr: number of pages
 *
 * For whoever changes the content of free pages, or lets it be changed.
 *
 * Context: any; the pages are not allocated meanwhile.
 */
void page_zero_forget(struct page *page, unsigned long nr);
#else
static inline void page_zero_forget(struct page *page, unsigned long nr)
{
}
#endif

#endif /* _LINUX_PAGE_ZERO_H */
