/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The cache of text outside the direct map: what mm/execmem.c, the C glue and
 * the Rust code of mm/freepage/execmem share.
 */
#ifndef _MM_FREEPAGE_EXECMEM_H
#define _MM_FREEPAGE_EXECMEM_H

#include <linux/execmem.h>
#include <linux/list.h>
#include <linux/types.h>

#ifdef CONFIG_EXECMEM_RUST

/* mm/freepage/execmem/glue.c, for mm/execmem.c */
void execmem_cache_init(void);
void *execmem_cache_alloc(const struct execmem_range *range, size_t size);
void *execmem_cache_alloc_rodata(const struct execmem_range *range, size_t size);
bool execmem_cache_free(void *ptr);
void execmem_release_idle(void);
int execmem_force_rw(void *ptr, size_t size);

/* mm/execmem.c, for mm/freepage/execmem/glue.c */
void *execmem_vmalloc_block(const struct execmem_range *range, size_t size);

/**
 * enum execmem_kind - what memory of the cache is for, and where it comes from
 * @EXECMEM_TEXT: text outside the direct map
 * @EXECMEM_RODATA: read-only data outside the direct map
 * @EXECMEM_ALIASED: text that the direct map has as well, read-only: from before
 *	there are unmapped pages, or when there are none
 * @EXECMEM_FOREIGN: not memory of the cache
 */
enum execmem_kind {
	EXECMEM_TEXT,
	EXECMEM_RODATA,
	EXECMEM_ALIASED,
	EXECMEM_FOREIGN,
};

/**
 * struct execmem_area - memory that was mapped at once
 * @start: where it is
 * @size: how many bytes there are
 * @large: how many of them are mapped by entries of 2 MiB
 * @kind: what it is for
 * @pages: pages outside the direct map, linked by page->lru; the order of each is
 *	in page_private()
 */
struct execmem_area {
	unsigned long start;
	size_t size;
	size_t large;
	enum execmem_kind kind;
	struct list_head pages;
};

/**
 * enum execmem_freed - what became of memory that was to be freed
 * @EXECMEM_FREED: it is free, or will soon be
 * @EXECMEM_NOT_CACHED: it is none of the cache's
 * @EXECMEM_REFUSED: it is the cache's, but nobody had it
 */
enum execmem_freed {
	EXECMEM_FREED,
	EXECMEM_NOT_CACHED,
	EXECMEM_REFUSED,
};

/**
 * struct execmem_stats - what debugfs shows of a node, in bytes
 * @text: text, free or in use
 * @large: the part of @text that was mapped by entries of 2 MiB
 * @aliased: the part of @text that the direct map has as well
 * @rodata: read-only data, free or in use
 * @used: the part of @text and @rodata that is in use
 * @pending: the part of @used that was freed and has still to be overwritten
 * @idle: the part of @text and @rodata that can be given back
 * @hole: the largest free part of @text
 */
struct execmem_stats {
	size_t text;
	size_t large;
	size_t aliased;
	size_t rodata;
	size_t used;
	size_t pending;
	size_t idle;
	size_t hole;
};

/* mm/freepage/execmem/glue.c, for area.rs */
struct execmem_area *execmem_area_alloc(const struct execmem_range *range, size_t size,
					enum execmem_kind kind);
void execmem_area_free(struct execmem_area *area);
bool execmem_range_holds(const struct execmem_range *range, unsigned long start,
			 size_t size);
bool execmem_unmapped_is_ready(void);
int execmem_trap(unsigned long start, size_t size, bool wait);
int execmem_protect(unsigned long start, size_t size, bool aliased);
int execmem_make_writable(unsigned long start, size_t size);
void execmem_retry_later(void);
void execmem_count_idle(int nid, long bytes);
int execmem_this_node(void);
unsigned int execmem_possible_nodes(void);
void execmem_cond_resched(void);

/* mm/freepage/execmem/execmem_cache.rs, for glue.c */
int execmem_rust_init(void);
int execmem_rust_register(void);
size_t execmem_rust_purge(void);
unsigned long execmem_rust_alloc(const struct execmem_range *range, size_t size, bool rodata);
enum execmem_freed execmem_rust_free(unsigned long start);
enum execmem_kind execmem_rust_kind(unsigned long start);
enum execmem_kind execmem_rust_make_writable(unsigned long start);
void execmem_rust_protected(unsigned long start, size_t size);
void execmem_rust_retry(void);
bool execmem_rust_stats(int nid, struct execmem_stats *stats);

#else

static inline void execmem_cache_init(void)
{
}

static inline void execmem_release_idle(void)
{
}

#endif /* CONFIG_EXECMEM_RUST */

#endif /* _MM_FREEPAGE_EXECMEM_H */
