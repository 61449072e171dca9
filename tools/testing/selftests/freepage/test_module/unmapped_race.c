// SPDX-License-Identifier: GPL-2.0
/*
 * How long unmapped pages, and text of modules, take to be allocated and freed by
 * several CPUs at once: /sys/kernel/debug/unmapped_race/pages and text.
 */
#include <linux/cpumask.h>
#include <linux/debugfs.h>
#include <linux/execmem.h>
#include <linux/gfp.h>
#include <linux/kprobes.h>
#include <linux/ktime.h>
#include <linux/math64.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/unmapped_alloc.h>
#include <linux/workqueue.h>

#define MAX_PIECES 256
#define TEXT_SIZE (2 * PAGE_SIZE)

/**
 * struct race - what the CPUs do
 * @take: allocates a piece, or returns NULL
 * @give: frees it
 * @pieces: how many each CPU has at once, up to MAX_PIECES
 * @rounds: how often
 * @ns: how long one was allocated and freed in the last race
 */
struct race {
	void *(*take)(void);
	void (*give)(void *piece);
	unsigned int pieces;
	unsigned int rounds;
	u64 ns;
};

struct racer {
	struct work_struct work;
	const struct race *race;
	void *pieces[MAX_PIECES];
	bool failed;
};

static void run(struct work_struct *work)
{
	struct racer *racer = container_of(work, struct racer, work);
	const struct race *race = racer->race;
	unsigned int round, nr;

	for (round = 0; round < race->rounds; round++) {
		for (nr = 0; nr < race->pieces; nr++) {
			racer->pieces[nr] = race->take();
			if (!racer->pieces[nr])
				break;
		}
		racer->failed |= nr < race->pieces;
		while (nr)
			race->give(racer->pieces[--nr]);
		cond_resched();
	}
}

/* Written: so many CPUs allocate and free. Read: ns for each time. */
static int race_set(void *data, u64 cpus)
{
	struct race *race = data;
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
		racers[i].race = race;
		INIT_WORK(&racers[i].work, run);
		queue_work_on(cpumask_nth(i, cpu_online_mask), system_percpu_wq,
			      &racers[i].work);
	}
	for (i = 0; i < cpus; i++) {
		flush_work(&racers[i].work);
		failed |= racers[i].failed;
	}
	race->ns = div64_u64(ktime_get_ns() - begin, cpus * race->pieces * race->rounds);
	kvfree(racers);
	return failed ? -ENOMEM : 0;
}

static int race_get(void *data, u64 *ns)
{
	struct race *race = data;

	*ns = race->ns;
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(race_fops, race_get, race_set, "%llu\n");

static void *take_page(void)
{
	struct page *page = unmapped_pages_alloc(GFP_KERNEL, 0);

	return IS_ERR(page) ? NULL : page;
}

static void give_page(void *page)
{
	unmapped_pages_free(page, 0);
}

static struct race pages_race = {
	.take = take_page,
	.give = give_page,
	.pieces = MAX_PIECES,
	.rounds = 64,
};

/* They are not exported. */
static void *(*text_alloc)(enum execmem_type type, size_t size);
static void (*text_free)(void *ptr);

static __nocfi int find_text_functions(void)
{
	struct kprobe probe = { .symbol_name = "kallsyms_lookup_name" };
	unsigned long (*find)(const char *name);
	int err = register_kprobe(&probe);

	if (err)
		return err;
	find = (void *)probe.addr;
	unregister_kprobe(&probe);
	text_alloc = (void *)find("execmem_alloc");
	text_free = (void *)find("execmem_free");
	return text_alloc && text_free ? 0 : -ENOENT;
}

static __nocfi void *take_text(void)
{
	return text_alloc(EXECMEM_MODULE_TEXT, TEXT_SIZE);
}

static __nocfi void give_text(void *text)
{
	text_free(text);
}

static struct race text_race = {
	.take = take_text,
	.give = give_text,
	.pieces = 16,
	.rounds = 16,
};

static struct dentry *dir;

static int __init unmapped_race_init(void)
{
	int err = unmapped_alloc_enable();

	if (err)
		return err;
	dir = debugfs_create_dir("unmapped_race", NULL);
	debugfs_create_file("pages", 0600, dir, &pages_race, &race_fops);
	if (!find_text_functions())
		debugfs_create_file("text", 0600, dir, &text_race, &race_fops);
	return 0;
}

static void __exit unmapped_race_exit(void)
{
	debugfs_remove(dir);
}

module_init(unmapped_race_init);
module_exit(unmapped_race_exit);
MODULE_DESCRIPTION("CPUs that take unmapped pages, or text, at once");
MODULE_LICENSE("GPL");
