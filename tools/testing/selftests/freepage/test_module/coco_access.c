// SPDX-License-Identifier: GPL-2.0
/*
 * Loads that a confidential guest must not do, for a host that watches it
 * (Documentation/dev-tools/coco-emulation.rst), and some that look like them.
 * Each file of /sys/kernel/debug/coco_access does something when it is written:
 *
 * straddle: loads across the start of the page whose physical address is written
 * edges: allocates so many MiB, and loads across the end of each block
 * private_mapping: loads from a shared page by a mapping that says private
 * shared_mapping: loads from a private page by a mapping that says shared
 * both_mappings: loads from a page as it is mapped while it is shared, and after
 */
#include <linux/debugfs.h>
#include <linux/gfp.h>
#include <linux/io.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/pgtable.h>
#include <linux/set_memory.h>
#include <linux/sizes.h>
#include <linux/vmalloc.h>
#include <asm/word-at-a-time.h>

/* As the kernel does for a name that ends at @end. */
static void load_across(void *end)
{
	unsigned long word = load_unaligned_zeropad(end - sizeof(long) / 2);

	/* The load has to happen. */
	OPTIMIZER_HIDE_VAR(word);
}

static int straddle(void *data, u64 address)
{
	if (!PAGE_ALIGNED(address) || !pfn_valid(PHYS_PFN(address)))
		return -EINVAL;
	load_across(__va(address));
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(straddle_fops, NULL, straddle, "%llu\n");

static int edges(void *data, u64 mib)
{
	unsigned long blocks = mib * SZ_1M / (PAGE_SIZE << MAX_PAGE_ORDER);
	struct page *page, *next;
	LIST_HEAD(pages);

	while (blocks--) {
		page = alloc_pages(GFP_KERNEL | __GFP_NORETRY | __GFP_NOWARN, MAX_PAGE_ORDER);
		if (!page)
			break;
		list_add(&page->lru, &pages);
		load_across(page_address(page) + (PAGE_SIZE << MAX_PAGE_ORDER));
	}
	list_for_each_entry_safe(page, next, &pages, lru)
		__free_pages(page, MAX_PAGE_ORDER);
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(edges_fops, NULL, edges, "%llu\n");

/* Loads by a mapping of its own. */
static int load_by(struct page *page, pgprot_t prot)
{
	unsigned long *word = vmap(&page, 1, VM_MAP, prot);

	if (!word)
		return -ENOMEM;
	READ_ONCE(*word);
	vunmap(word);
	return 0;
}

/* Loads from a page while it is shared, and when it is private again. */
static int convert(pgprot_t shared, pgprot_t private)
{
	struct page *page = alloc_page(GFP_KERNEL);
	unsigned long address;
	int err;

	if (!page)
		return -ENOMEM;
	address = (unsigned long)page_address(page);
	err = set_memory_decrypted(address, 1);
	if (!err)
		err = load_by(page, shared);
	if (!err)
		err = set_memory_encrypted(address, 1);
	if (!err)
		err = load_by(page, private);
	/* Nobody knows what a page is if its conversion failed. */
	if (!err)
		__free_page(page);
	return err;
}

static int private_mapping(void *data, u64 ignored)
{
	return convert(PAGE_KERNEL, PAGE_KERNEL);
}
DEFINE_DEBUGFS_ATTRIBUTE(private_fops, NULL, private_mapping, "%llu\n");

static int shared_mapping(void *data, u64 ignored)
{
	return convert(pgprot_decrypted(PAGE_KERNEL), pgprot_decrypted(PAGE_KERNEL));
}
DEFINE_DEBUGFS_ATTRIBUTE(shared_fops, NULL, shared_mapping, "%llu\n");

static int both_mappings(void *data, u64 ignored)
{
	return convert(pgprot_decrypted(PAGE_KERNEL), PAGE_KERNEL);
}
DEFINE_DEBUGFS_ATTRIBUTE(both_fops, NULL, both_mappings, "%llu\n");

static struct dentry *dir;

static int __init coco_access_init(void)
{
	dir = debugfs_create_dir("coco_access", NULL);
	debugfs_create_file_unsafe("straddle", 0200, dir, NULL, &straddle_fops);
	debugfs_create_file_unsafe("edges", 0200, dir, NULL, &edges_fops);
	debugfs_create_file_unsafe("private_mapping", 0200, dir, NULL, &private_fops);
	debugfs_create_file_unsafe("shared_mapping", 0200, dir, NULL, &shared_fops);
	debugfs_create_file_unsafe("both_mappings", 0200, dir, NULL, &both_fops);
	return 0;
}
module_init(coco_access_init);

static void __exit coco_access_exit(void)
{
	debugfs_remove_recursive(dir);
}
module_exit(coco_access_exit);

MODULE_DESCRIPTION("Loads that a confidential guest must not do");
MODULE_LICENSE("GPL");
