// SPDX-License-Identifier: GPL-2.0
/*
 * The threads of the zeroer, one for each node with memory: starting, stopping,
 * sleeping, freezing. What they do, and how long they sleep, is in policy.rs.
 *
 * They are SCHED_IDLE: any other task that wants the CPU gets it at once. While
 * preempted they hold at most 2 MiB off the free lists.
 *
 * Lock order: page_zero_mutex -> page_zero_node.mutex -> zone->lock.
 */
#include <linux/freezer.h>
#include <linux/kthread.h>
#include <linux/mm.h>
#include <linux/memory.h>
#include <linux/moduleparam.h>
#include <linux/mutex.h>
#include <linux/nodemask.h>
#include <linux/percpu.h>
#include <linux/sched.h>
#include <linux/sched/cputime.h>
#include <linux/slab.h>
#include <linux/vmstat.h>
#include <linux/wait.h>
#include <uapi/linux/sched/types.h>

#include "../freepage.h"
#include "page_zero.h"
#include "zeroing.h"

/**
 * struct page_zero_cpu - what a zeroer knows of a CPU
 * @freed: pages that were freed there until the last look
 * @allocated: pages that were allocated there until then
 * @keep: how many it freed, or allocated, between the last two looks
 * @left: how many may still be taken from its lists until the next one
 */
struct page_zero_cpu {
	unsigned long freed;
	unsigned long allocated;
	int keep;
	int left;
};

/**
 * struct page_zero_node - the zeroer of a node
 * @mutex: held by whoever works with @state and @cpus
 * @task: its thread
 * @users: requests that are worked on; the thread leaves the node to them
 * @state: what clear.rs keeps for the node
 * @cpus: what is known of CPUs, of any node
 * @pool: the pools of hugetlb on this node
 */
struct page_zero_node {
	struct mutex mutex;
	struct task_struct *task;
	int users;
	void *state;
	struct page_zero_cpu __percpu *cpus;
	struct page_zero_pool pool;
};

/* Batches of pages that are taken from the lists of CPUs in one step */
#define PAGE_ZERO_COLLECT_BATCHES	32

/* Protects what follows: threads are started and stopped, files are written. */
static DEFINE_MUTEX(page_zero_mutex);
static struct page_zero_node *page_zero_nodes[MAX_NUMNODES];
static bool page_zero_is_enabled;

/* Sleeping threads; they look at the settings again when woken. */
static DECLARE_WAIT_QUEUE_HEAD(page_zero_wait);
static atomic_t page_zero_generation = ATOMIC_INIT(0);

struct page_zero_settings page_zero_settings = {
	/* What was used before an idle second is cleared by its end: it takes two looks. */
	.delay_ms = 250,
	/* Most faults take single pages, also from small blocks. */
	.min_order = 0,
	/* A burst finds a quarter of the memory zeroed, and does not start it. */
	.low_percent = 25,
	.high_percent = 50,
	/* Of time that is idle otherwise; half of it lets a CPU sleep. */
	.cpu_percent = 50,
	/* A fraction of what one channel of DDR4 can do. */
	.rate_mib = 2048,
};

/**
 * page_zero_nr_zeroed - how much of the free memory of a node is zeroed
 * @nid: the node
 *
 * Return: number of pages.
 */
unsigned long page_zero_nr_zeroed(int nid)
{
	long sum = 0;
	int cpu;

	if (!page_zero_in_use())
		return 0;
	for_each_possible_cpu(cpu)
		sum += READ_ONCE(per_cpu_ptr(page_zero_zeroed, cpu)[nid]);
	return max(sum, 0L);
}

/**
 * page_zero_nr_managed - how much memory a node has
 * @nid: the node
 *
 * Return: number of pages that the allocator manages.
 */
unsigned long page_zero_nr_managed(int nid)
{
	unsigned long pages = 0;
	int i;

	for (i = 0; i < MAX_NR_ZONES; i++)
		pages += zone_managed_pages(&NODE_DATA(nid)->node_zones[i]);
	return pages;
}

/**
 * page_zero_nr_free - how much memory of a node is free
 * @nid: the node
 *
 * Return: number of pages on the free lists.
 */
unsigned long page_zero_nr_free(int nid)
{
	unsigned long pages = 0;
	int i;

	for (i = 0; i < MAX_NR_ZONES; i++)
		pages += zone_page_state(&NODE_DATA(nid)->node_zones[i], NR_FREE_PAGES);
	return pages;
}

/**
 * page_zero_events - to how many pages something happened since boot
 * @item: what
 *
 * Return: number of pages, on all CPUs.
 */
unsigned long page_zero_events(enum vm_event_item item)
{
	unsigned long sum = 0;
	int cpu;

	for_each_possible_cpu(cpu)
		sum += READ_ONCE(per_cpu(vm_event_states, cpu).event[item]);
	return sum;
}

/**
 * page_zero_nr_missed - how much had to be cleared when it was allocated
 *
 * Return: number of pages since boot, of all nodes.
 */
unsigned long page_zero_nr_missed(void)
{
	return page_zero_events(PAGE_ZERO_MISSED);
}

/* How many pages of a node a CPU has on its lists beyond those that it is to keep. */
static int page_zero_excess(int nid, int cpu, int keep)
{
	int i, excess = 0;

	for (i = 0; i < MAX_NR_ZONES; i++) {
		struct zone *zone = &NODE_DATA(nid)->node_zones[i];

		if (populated_zone(zone)) {
			int count = READ_ONCE(per_cpu_ptr(zone->per_cpu_pageset, cpu)->count);

			excess += max(count - keep, 0);
		}
	}
	return excess;
}

/**
 * page_zero_look - note what CPUs did since the last look
 * @nid: the node whose zeroer looks
 *
 * What a CPU has freed since then it will use next, and one that allocates needs
 * about as much again. What it has beyond that is not cached any more.
 *
 * Context: the zeroer of the node.
 */
void page_zero_look(int nid)
{
	int cpu, i;

	for_each_online_cpu(cpu) {
		struct page_zero_cpu *known = per_cpu_ptr(page_zero_nodes[nid]->cpus, cpu);
		unsigned long *event = per_cpu(vm_event_states, cpu).event;
		unsigned long freed = READ_ONCE(event[PGFREE]), allocated = 0, used;

		for (i = 0; i < MAX_NR_ZONES; i++)
			allocated += READ_ONCE(event[PGALLOC_NORMAL - ZONE_NORMAL + i]);
		used = max(freed - known->freed, allocated - known->allocated);
		known->keep = min_t(unsigned long, used, INT_MAX);
		known->left = page_zero_excess(nid, cpu, known->keep);
		known->freed = freed;
		known->allocated = allocated;
	}
}

/* Takes pages of one zone from the lists of a CPU; the number of batches. */
static int page_zero_collect_from(struct zone *zone, int cpu, struct page_zero_cpu *known,
				  int most)
{
	int batches = 0;

	while (known->left > 0 && batches < most) {
		int nr = freepage_drain(zone, cpu, known->keep);

		if (!nr)
			break;
		known->left -= nr;
		batches++;
		cond_resched();
	}
	return batches;
}

/**
 * page_zero_collect - free pages that CPUs keep on their lists, and do not use
 * @nid: the node whose zeroer does it
 *
 * No more than they had at the last look: those that allocate get others meanwhile.
 *
 * Context: the zeroer of the node; may sleep.
 * Return: whether there are more.
 */
bool page_zero_collect(int nid)
{
	int cpu, i, left = PAGE_ZERO_COLLECT_BATCHES;

	for_each_online_cpu(cpu) {
		struct page_zero_cpu *known = per_cpu_ptr(page_zero_nodes[nid]->cpus, cpu);

		for (i = 0; i < MAX_NR_ZONES; i++) {
			struct zone *zone = &NODE_DATA(nid)->node_zones[i];

			if (populated_zone(zone))
				left -= page_zero_collect_from(zone, cpu, known, left);
		}
		if (!left)
			return true;
		known->left = 0;
	}
	return false;
}

/* Has page_zero_collect() take all that CPUs have now. */
static void page_zero_keep_nothing(int nid)
{
	struct page_zero_node *node = page_zero_nodes[nid];
	int cpu;

	lockdep_assert_held(&node->mutex);
	for_each_online_cpu(cpu) {
		struct page_zero_cpu *known = per_cpu_ptr(node->cpus, cpu);

		known->keep = 0;
		known->left = page_zero_excess(nid, cpu, 0);
	}
}

/**
 * page_zero_zone_nid - node of a zone
 * @zone: the zone
 *
 * Return: the number of the node.
 */
int page_zero_zone_nid(struct zone *zone)
{
	return zone_to_nid(zone);
}

/**
 * page_zero_runtime - the time for which this thread has run
 *
 * Return: time in ns, without that when others had the CPU.
 */
u64 page_zero_runtime(void)
{
	return task_sched_runtime(current);
}

/**
 * page_zero_keeps - whether what is zeroed is kept from being reported to the host
 * @zone: zone of a node
 *
 * It is, up to the high watermark: else each pass of page reporting would take
 * away what the zeroer has done.
 *
 * Context: any; looks at each CPU, so not to be called for each page.
 * Return: true if a zeroed block of @zone is not to be reported.
 */
bool page_zero_keeps(struct zone *zone)
{
	int nid = zone_to_nid(zone);

	return page_zero_in_use() &&
	       page_zero_nr_zeroed(nid) <= page_zero_nr_managed(nid) / 100 *
					   READ_ONCE(page_zero_settings.high_percent);
}

/* Any other task that wants the CPU gets it at once. */
static void page_zero_be_idle(struct task_struct *task)
{
	struct sched_param param = { .sched_priority = 0 };

	sched_setscheduler_nocheck(task, SCHED_IDLE, &param);
}

static int page_zero_thread(void *data)
{
	struct page_zero_node *node = data;

	page_zero_be_idle(current);
	set_freezable();

	while (!kthread_should_stop()) {
		int generation = atomic_read(&page_zero_generation);
		unsigned long delay_ms;

		if (READ_ONCE(node->users)) {
			wait_event_freezable(page_zero_wait,
					     kthread_should_stop() || !READ_ONCE(node->users));
			continue;
		}
		mutex_lock(&node->mutex);
		delay_ms = page_zero_node_step(node->state);
		mutex_unlock(&node->mutex);

		if (!delay_ms) {
			try_to_freeze();
			cond_resched();
			continue;
		}
		wait_event_freezable_timeout(page_zero_wait,
			kthread_should_stop() ||
			atomic_read(&page_zero_generation) != generation,
			msecs_to_jiffies(delay_ms));
	}
	return 0;
}

/**
 * page_zero_wake - let the threads see that a setting has changed
 */
void page_zero_wake(void)
{
	atomic_inc(&page_zero_generation);
	wake_up_all(&page_zero_wait);
}

/* Makes what works on @nid, if it is not there yet. It stays there for good. */
static struct page_zero_node *page_zero_node_get(int nid)
{
	struct page_zero_node *node = page_zero_nodes[nid];

	lockdep_assert_held(&page_zero_mutex);
	if (node)
		return node;

	node = kzalloc_node(sizeof(*node), GFP_KERNEL, nid);
	if (!node)
		return NULL;
	mutex_init(&node->mutex);
	node->cpus = alloc_percpu(struct page_zero_cpu);
	node->state = node->cpus ? page_zero_node_new(nid) : NULL;
	if (!node->state) {
		free_percpu(node->cpus);
		kfree(node);
		return NULL;
	}
	spin_lock_init(&node->pool.lock);
	/* Pairs with page_zero_pool(). */
	smp_store_release(&page_zero_nodes[nid], node);
	return node;
}

static int page_zero_start_node(int nid)
{
	struct page_zero_node *node = page_zero_node_get(nid);
	struct task_struct *task;

	if (!node)
		return -ENOMEM;
	if (node->task)
		return 0;
	task = kthread_create_on_node(page_zero_thread, node, nid, "kzerod%d", nid);
	if (IS_ERR(task))
		return PTR_ERR(task);
	node->task = task;
	wake_up_process(task);
	return 0;
}

static void page_zero_stop_node(int nid)
{
	struct page_zero_node *node = page_zero_nodes[nid];

	if (!node || !node->task)
		return;
	/* It would take long to stop where other tasks want the CPU. */
	sched_set_normal(node->task, 0);
	kthread_stop(node->task);
	node->task = NULL;
}

/* What makes it impossible to know what a free page contains */
static int page_zero_possible(void)
{
	if (page_poisoning_enabled()) {
		pr_warn_once("page_zero: not with page poisoning: free pages have a pattern\n");
		return -EOPNOTSUPP;
	}
	return 0;
}

/*
 * The flag may be set from here on. There is no way back, see page_zero.h. Not before
 * each place that takes it off looks for it: they begin to one after the other.
 */
static int page_zero_use(void)
{
	static DEFINE_MUTEX(use_mutex);

	guard(mutex)(&use_mutex);
	if (!page_zero_zeroed)
		page_zero_zeroed = __alloc_percpu(nr_node_ids * sizeof(long), sizeof(long));
	if (!page_zero_zeroed)
		return -ENOMEM;
	if (!static_key_enabled(&page_zero_key))
		static_branch_enable(&page_zero_key);
	if (!static_key_enabled(&page_zero_marks_key))
		static_branch_enable(&page_zero_marks_key);
	return 0;
}

/**
 * page_zero_enabled - whether the zeroer is to run
 *
 * Return: true if it is enabled.
 */
bool page_zero_enabled(void)
{
	return READ_ONCE(page_zero_is_enabled);
}

/**
 * page_zero_set_enabled - start or stop the zeroer
 * @enabled: whether it is to run
 *
 * What was zeroed stays so when it stops, until it is used.
 *
 * Context: process context; may sleep. No lock of the memory management is held.
 * Return: 0, -EOPNOTSUPP if free pages are poisoned, or the error that starting
 * a thread had; nothing has changed then.
 */
int page_zero_set_enabled(bool enabled)
{
	int nid, error = 0;

	if (enabled) {
		error = page_zero_possible() ?: page_zero_use();
		if (error)
			return error;
	}

	mutex_lock(&page_zero_mutex);
	if (enabled) {
		for_each_node_state(nid, N_MEMORY) {
			error = page_zero_start_node(nid);
			if (error)
				break;
		}
	}
	if (!error)
		WRITE_ONCE(page_zero_is_enabled, enabled);
	if (!page_zero_is_enabled)
		for_each_node(nid)
			page_zero_stop_node(nid);
	mutex_unlock(&page_zero_mutex);
	return error;
}

/*
 * The state of a node, for a request that a signal may end. The thread comes to the
 * end of its step at once, whoever wants the CPU, and makes no other one until
 * page_zero_node_put().
 */
static struct page_zero_node *page_zero_node_for_user(int nid)
{
	struct page_zero_node *node;

	if (mutex_lock_interruptible(&page_zero_mutex))
		return ERR_PTR(-EINTR);
	node = page_zero_node_get(nid);
	if (node) {
		WRITE_ONCE(node->users, node->users + 1);
		if (node->task)
			sched_set_normal(node->task, 0);
	}
	mutex_unlock(&page_zero_mutex);
	return node ?: ERR_PTR(-ENOMEM);
}

static void page_zero_node_put(struct page_zero_node *node)
{
	mutex_lock(&page_zero_mutex);
	WRITE_ONCE(node->users, node->users - 1);
	if (!node->users) {
		if (node->task)
			page_zero_be_idle(node->task);
		page_zero_wake();
	}
	mutex_unlock(&page_zero_mutex);
}

/* Zeroes up to @pages of a node; how many were, or -EINTR. */
static long page_zero_flush_node(struct page_zero_node *node, int nid, unsigned long pages)
{
	bool begun = false, collecting = true;
	unsigned long left = pages;

	while (left) {
		long cleared;

		if (signal_pending(current) || mutex_lock_interruptible(&node->mutex))
			return -EINTR;
		if (!begun) {
			page_zero_keep_nothing(nid);
			page_zero_node_restart(node->state);
			begun = true;
		}
		if (collecting)
			collecting = page_zero_collect(nid);
		cleared = collecting ? 0 : page_zero_node_flush(node->state);
		mutex_unlock(&node->mutex);
		if (cleared < 0)
			break;
		left -= min_t(unsigned long, left, cleared);
		cond_resched();
	}
	return pages - left;
}

/**
 * page_zero_flush - zero free memory now, whatever the watermarks say
 * @bytes: how much, rounded up to pages
 *
 * Context: process context; may sleep.
 * Return: 0 if so much was cleared, or no more could be; -EINTR if a signal came,
 * -ENOMEM, or -EOPNOTSUPP if free pages are poisoned. What was cleared by then
 * stays so.
 */
int page_zero_flush(u64 bytes)
{
	unsigned long pages = (bytes >> PAGE_SHIFT) + !!offset_in_page(bytes);
	int nid, error = page_zero_possible() ?: page_zero_use();

	if (error)
		return error;

	for_each_node_state(nid, N_MEMORY) {
		struct page_zero_node *node = page_zero_node_for_user(nid);
		long cleared;

		if (IS_ERR(node))
			return PTR_ERR(node);
		cleared = page_zero_flush_node(node, nid, pages);
		page_zero_node_put(node);
		if (cleared < 0)
			return cleared;
		pages -= cleared;
	}
	return 0;
}

/**
 * page_zero_pool - the pools of hugetlb on a node
 * @nid: the node
 *
 * Return: NULL while the node has no zeroer.
 */
struct page_zero_pool *page_zero_pool(int nid)
{
	/* Pairs with page_zero_node_get(). */
	struct page_zero_node *node = smp_load_acquire(&page_zero_nodes[nid]);

	return node ? &node->pool : NULL;
}

#ifdef CONFIG_HUGETLB_PAGE
static int page_zero_pool_flush_node(int nid, struct hstate *h, unsigned long nr)
{
	struct page_zero_node *node = page_zero_node_for_user(nid);
	long cleared = 0;
	int error = 0;

	if (IS_ERR(node))
		return PTR_ERR(node);

	while (cleared >= 0 && page_zero_pool_nr(nid, h) < nr) {
		if (signal_pending(current) || mutex_lock_interruptible(&node->mutex)) {
			error = -EINTR;
			break;
		}
		cleared = page_zero_pool_clear(nid, h);
		mutex_unlock(&node->mutex);
		cond_resched();
	}
	page_zero_node_put(node);
	return error;
}

/**
 * page_zero_pool_flush - clear free huge pages now, until so many are zero
 * @nid: their node, or NUMA_NO_NODE for any
 * @h: size of the pool
 * @nr: how many are to be zero
 *
 * Context: process context; may sleep.
 * Return: 0 if so many are, or all that there are; -EINTR if a signal came,
 * -ENOMEM, or -EOPNOTSUPP as for page_zero_flush().
 */
int page_zero_pool_flush(int nid, struct hstate *h, unsigned long nr)
{
	int node, error = page_zero_possible() ?: page_zero_use();

	if (error)
		return error;

	for_each_node_state(node, N_MEMORY) {
		unsigned long others;

		if (nid != NUMA_NO_NODE && nid != node)
			continue;
		/* What other nodes have counts, too, where any node will do. */
		others = page_zero_pool_nr(nid, h) - page_zero_pool_nr(node, h);
		error = page_zero_pool_flush_node(node, h, nr - min(nr, others));
		if (error)
			return error;
	}
	return 0;
}
#endif /* CONFIG_HUGETLB_PAGE */

/* Memory came or went: a node may have got its first. */
static int page_zero_memory_notify(struct notifier_block *nb,
				   unsigned long action, void *data)
{
	struct memory_notify *arg = data;

	switch (action) {
	case MEM_ONLINE:
		mutex_lock(&page_zero_mutex);
		if (page_zero_is_enabled &&
		    page_zero_start_node(pfn_to_nid(arg->start_pfn)))
			pr_warn("page_zero: no thread for node %d, which is not zeroed\n",
				pfn_to_nid(arg->start_pfn));
		mutex_unlock(&page_zero_mutex);
		break;
	case MEM_OFFLINE:
		page_zero_forget(pfn_to_page(arg->start_pfn), arg->nr_pages);
		break;
	}
	return NOTIFY_OK;
}

static bool page_zero_on_boot __initdata;

static int __init page_zero_setup(char *str)
{
	if (kstrtobool(str, &page_zero_on_boot)) {
		pr_warn("page_zero=%s: expected on or off\n", str);
		return -EINVAL;
	}
	return 0;
}
early_param("page_zero", page_zero_setup);

static int __init page_zero_init(void)
{
	int error = hotplug_memory_notifier(page_zero_memory_notify, DEFAULT_CALLBACK_PRI);

	if (!error && page_zero_on_boot)
		error = page_zero_set_enabled(true);
	return error;
}
late_initcall(page_zero_init);
