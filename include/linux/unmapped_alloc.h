/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Pages outside the kernel's direct map, see
 * Documentation/mm/unmapped_alloc.rst.
 */
#ifndef _LINUX_UNMAPPED_ALLOC_H
#define _LINUX_UNMAPPED_ALLOC_H

#include <linux/alloc_tag.h>
#include <linux/err.h>
#include <linux/gfp_types.h>

struct page;

#ifdef CONFIG_UNMAPPED_ALLOC
int unmapped_alloc_enable(void);
struct page *unmapped_pages_alloc_noprof(gfp_t gfp, unsigned int order);
#define unmapped_pages_alloc(...) alloc_hooks(unmapped_pages_alloc_noprof(__VA_ARGS__))
void unmapped_pages_free(struct page *page, unsigned int order);
bool unmapped_alloc_is_ready(void);
void *unmapped_page_map(struct page *page);
void unmapped_page_unmap(void *address);
void unmapped_pages_may_be_saved(long pages);
#else
static inline int unmapped_alloc_enable(void)
{
	return -EOPNOTSUPP;
}

static inline struct page *unmapped_pages_alloc(gfp_t gfp, unsigned int order)
{
	return ERR_PTR(-EOPNOTSUPP);
}

static inline void unmapped_pages_free(struct page *page, unsigned int order)
{
}

static inline bool unmapped_alloc_is_ready(void)
{
	return false;
}

static inline void *unmapped_page_map(struct page *page)
{
	return NULL;
}

static inline void unmapped_page_unmap(void *address)
{
}
#endif /* CONFIG_UNMAPPED_ALLOC */

#endif /* _LINUX_UNMAPPED_ALLOC_H */
