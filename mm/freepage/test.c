// SPDX-License-Identifier: GPL-2.0
/*
 * A treatment of free pages for tests, in /sys/kernel/debug/freepage_treatment/: what
 * it does to a batch, and its files. The rest is in test.rs.
 */
#include <linux/debugfs.h>
#include <linux/delay.h>
#include <linux/errno.h>
#include <linux/init.h>
#include <linux/minmax.h>
#include <linux/pageblock-flags.h>

#include "freepage.h"
#include "test.h"

static struct delayed_work freepage_test_work;

struct freepage_test_settings freepage_test_settings = {
	.delay_ms = 100,
};

/**
 * freepage_test_batch - treat a batch
 * @runs: number of runs that it has
 *
 * Context: process context; may sleep.
 * Return: how many of them are treated, or -EIO.
 */
int freepage_test_batch(unsigned int runs)
{
	unsigned int most = READ_ONCE(freepage_test_settings.runs);
	unsigned int fail = READ_ONCE(freepage_test_settings.fail);

	msleep(READ_ONCE(freepage_test_settings.sleep_ms));
	if (fail) {
		WRITE_ONCE(freepage_test_settings.fail, fail - 1);
		return -EIO;
	}
	return most ? min(runs, most) : runs;
}

static int freepage_test_set(void *data, u64 val)
{
	return val > 1 ? -ERANGE : freepage_test_set_enabled(val);
}
DEFINE_DEBUGFS_ATTRIBUTE(freepage_test_enabled_fops, NULL, freepage_test_set, "%llu\n");

static int freepage_test_order_get(void *data, u64 *val)
{
	*val = freepage_test_settings.order;
	return 0;
}

static int freepage_test_order_set(void *data, u64 val)
{
	if (val > MAX_PAGE_ORDER)
		return -ERANGE;
	WRITE_ONCE(freepage_test_settings.order, val);
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(freepage_test_order_fops, freepage_test_order_get,
			 freepage_test_order_set, "%llu\n");

static int freepage_test_stat_get(void *data, u64 *val)
{
	*val = freepage_test_stat((unsigned long)data);
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(freepage_test_stat_fops, freepage_test_stat_get, NULL, "%llu\n");

static int __init freepage_test_init(void)
{
	struct dentry *dir = debugfs_create_dir("freepage_treatment", NULL);
	static const char * const stats[] = {
		[FREEPAGE_TEST_PASSES] = "passes",
		[FREEPAGE_TEST_BATCHES] = "batches",
		[FREEPAGE_TEST_FAILURES] = "failures",
		[FREEPAGE_TEST_PAGES] = "pages",
	};
	unsigned long i;

	freepage_init_work(FREEPAGE_TEST, &freepage_test_work);
	debugfs_create_file_unsafe("enabled", 0200, dir, NULL, &freepage_test_enabled_fops);
	debugfs_create_file_unsafe("order", 0600, dir, NULL, &freepage_test_order_fops);
	debugfs_create_u32("delay_ms", 0600, dir, &freepage_test_settings.delay_ms);
	debugfs_create_u32("sleep_ms", 0600, dir, &freepage_test_settings.sleep_ms);
	debugfs_create_u32("fail", 0600, dir, &freepage_test_settings.fail);
	debugfs_create_u32("runs", 0600, dir, &freepage_test_settings.runs);
	for (i = 0; i < ARRAY_SIZE(stats); i++)
		debugfs_create_file_unsafe(stats[i], 0400, dir, (void *)i,
					   &freepage_test_stat_fops);
	return 0;
}
late_initcall(freepage_test_init);
