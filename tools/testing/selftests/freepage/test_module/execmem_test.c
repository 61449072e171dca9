// SPDX-License-Identifier: GPL-2.0
/*
 * A module that says which of its own memory could be read where the direct map
 * would have it, in pages. All files are in /sys/kernel/debug/execmem_test.
 */
#include <linux/debugfs.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>

static u64 count(const struct module_memory *memory, bool readable)
{
	unsigned int offset;
	u64 pages = 0;
	char byte;

	for (offset = 0; offset < memory->size; offset += PAGE_SIZE) {
		struct page *page = vmalloc_to_page(memory->base + offset);

		pages += copy_from_kernel_nofault(&byte, page_address(page), 1) ? !readable :
										   readable;
	}
	return pages;
}

static int readable_get(void *memory, u64 *value)
{
	*value = count(memory, true);
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(readable_fops, readable_get, NULL, "%llu\n");

static int unreadable_get(void *memory, u64 *value)
{
	*value = count(memory, false);
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(unreadable_fops, unreadable_get, NULL, "%llu\n");

static struct dentry *dir;

static void show(const char *name, enum mod_mem_type type)
{
	struct dentry *sub = debugfs_create_dir(name, dir);

	debugfs_create_file("readable", 0400, sub, &THIS_MODULE->mem[type], &readable_fops);
	debugfs_create_file("unreadable", 0400, sub, &THIS_MODULE->mem[type], &unreadable_fops);
}

static int __init execmem_test_init(void)
{
	dir = debugfs_create_dir("execmem_test", NULL);
	show("text", MOD_TEXT);
	show("rodata", MOD_RODATA);
	show("data", MOD_DATA);
	return 0;
}

static void __exit execmem_test_exit(void)
{
	debugfs_remove(dir);
}

module_init(execmem_test_init);
module_exit(execmem_test_exit);
MODULE_DESCRIPTION("Looks at its own memory for tests");
MODULE_LICENSE("GPL");
