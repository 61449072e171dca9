// SPDX-License-Identifier: GPL-2.0
/*
 * How long unmapped pages take to be allocated and freed by several CPUs at once:
 * /sys/kernel/debug/unmapped_race.
 */
#include <linux/cpumask.h>
#include <linux/debugfs.h>
#include <linux/gfp.h>
#include <linux/ktime.h>
#include <linux/math64.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/unmapped_alloc.h>
#include <linux/workqueue.h>

/* Pages that each CPU has at once in a race, and how often. */
#define RACE_PAGES 256
#define RACE_ROUNDS 64

struct racer {
	struct work_struct work;
	struct page *pages[RACE_PAGES];
	bool failed;
};

static u64 race_ns;

static void race(struct work_struct *work)
{
	struct racer *racer = container_of(work, struct racer, work);
	unsigned int round, nr;

	for (round = 0; round < RACE_ROUNDS; round++) {
		for (nr = 0; nr < RACE_PAGES; nr++) {
			racer->pages[nr] = unmapped_pages_alloc(GFP_KERNEL, 0);
			if (!racer->pages[nr])
				break;
		}
		racer->failed |= nr < RACE_PAGES;
		while (nr)
			unmapped_pages_free(racer->pages[--nr], 0);
		cond_resched();
	}
}

/* Written: so many CPUs allocate and free pages. Read: ns for each of these. */
static int race_set(void *data, u64 cpus)
{
	struct racer *racers;
	bool failed = false;
	unsigned int i;
	u64 begin;

	if (!cpus || cpus > num_online_cpus())
		return -EINVAL;
	racers = kvzalloc_objs(*racers, cpus);
	if (!racers)
		return -ENOMEM;
	begin = ktime_get_ns();
	for (i = 0; i < cpus; i++) {
		INIT_WORK(&racers[i].work, race);
		queue_work_on(cpumask_nth(i, cpu_online_mask), system_percpu_wq,
			      &racers[i].work);
	}
	for (i = 0; i < cpus; i++) {
		flush_work(&racers[i].work);
		failed |= racers[i].failed;
	}
	race_ns = div64_u64(ktime_get_ns() - begin, cpus * RACE_PAGES * RACE_ROUNDS);
	kvfree(racers);
	return failed ? -ENOMEM : 0;
}

static int race_get(void *data, u64 *ns)
{
	*ns = race_ns;
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(race_fops, race_get, race_set, "%llu\n");

static struct dentry *file;

static int __init unmapped_race_init(void)
{
	file = debugfs_create_file("unmapped_race", 0600, NULL, NULL, &race_fops);
	return 0;
}

static void __exit unmapped_race_exit(void)
{
	debugfs_remove(file);
}

module_init(unmapped_race_init);
module_exit(unmapped_race_exit);
MODULE_DESCRIPTION("CPUs that take unmapped pages at once");
MODULE_LICENSE("GPL");
