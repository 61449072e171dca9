// SPDX-License-Identifier: GPL-2.0
/*
 * A user of jit_alloc() for tests. It holds functions that it has made up, calls
 * them, and says what could be written to. All files are in
 * /sys/kernel/debug/jit_test.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/debugfs.h>
#include <linux/delay.h>
#include <linux/jitalloc.h>
#include <linux/kdebug.h>
#include <linux/kthread.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/prandom.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/text-patching.h>
#include <linux/timex.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>

#define TRAP 0xcc

/* endbr64; mov $value, %eax; ret; int3 */
#define CODE_LEN 11
#define VALUE_AT 5

struct code {
	u8 bytes[CODE_LEN];
};

static struct code make_code(u32 value)
{
	struct code code = { { 0xf3, 0x0f, 0x1e, 0xfa, 0xb8, 0, 0, 0, 0, 0xc3, TRAP } };

	memcpy(code.bytes + VALUE_AT, &value, sizeof(value));
	return code;
}

static __nocfi u32 call(void *text)
{
	return ((u32 (*)(void))text)();
}

/* Text that is held, or was. */
struct piece {
	struct list_head list;
	void *text;
	size_t len;
	u32 value;
};

/* Protects all below. */
static DEFINE_MUTEX(control_mutex);
static LIST_HEAD(held);
static LIST_HEAD(freed);
static u64 nr_held;
static u32 next_value;

/* Bytes of what is allocated next; 0 for any number up to two pages. */
static u32 len;

static u64 nr_flushes;

static void count_flush(void)
{
	nr_flushes++;
}

static size_t any_len(struct rnd_state *state)
{
	size_t longest = 16 << (prandom_u32_state(state) % 10);

	return CODE_LEN + prandom_u32_state(state) % longest;
}

static struct rnd_state control_state;

static int hold_one(void)
{
	struct piece *piece = kmalloc_obj(*piece);
	struct code code;

	if (!piece)
		return -ENOMEM;
	piece->value = next_value++;
	piece->len = len ? max_t(size_t, len, CODE_LEN) : any_len(&control_state);
	code = make_code(piece->value);
	piece->text = jit_alloc(NULL, piece->len);
	if (!piece->text || jit_update(piece->text, code.bytes, CODE_LEN)) {
		jit_free(piece->text);
		kfree(piece);
		return -ENOMEM;
	}
	list_add(&piece->list, &held);
	nr_held++;
	return 0;
}

static void drop_one(void)
{
	struct piece *piece = list_first_entry(&held, struct piece, list);

	list_move(&piece->list, &freed);
	nr_held--;
	jit_free(piece->text);
}

static void forget(struct list_head *pieces)
{
	struct piece *piece, *next;

	list_for_each_entry_safe(piece, next, pieces, list)
		kfree(piece);
	INIT_LIST_HEAD(pieces);
}

/* Written: hold so many functions. Newly allocated ones have "len" bytes. */
static int held_set(void *data, u64 count)
{
	int err = 0;

	guard(mutex)(&control_mutex);
	if (count > nr_held)
		forget(&freed);
	while (!err && nr_held < count)
		err = hold_one();
	while (nr_held > count)
		drop_one();
	return err;
}

static int held_get(void *data, u64 *count)
{
	guard(mutex)(&control_mutex);
	*count = nr_held;
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(held_fops, held_get, held_set, "%llu\n");

/* Functions that are held and do not return what they should. */
static int wrong_get(void *data, u64 *count)
{
	struct piece *piece;

	guard(mutex)(&control_mutex);
	*count = 0;
	list_for_each_entry(piece, &held, list)
		*count += call(piece->text) != piece->value;
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(wrong_fops, wrong_get, NULL, "%llu\n");

/* Written: has all functions that are held return so much more. */
static int update_set(void *data, u64 more)
{
	struct piece *piece;
	int err = 0;

	guard(mutex)(&control_mutex);
	list_for_each_entry(piece, &held, list) {
		piece->value += more;
		err = err ?: jit_update(piece->text + VALUE_AT, &piece->value,
					sizeof(piece->value));
	}
	return err;
}
DEFINE_DEBUGFS_ATTRIBUTE(update_fops, NULL, update_set, "%llu\n");

/* Writes what is there already. copy_to_kernel_nofault() is not for modules. */
static bool can_write(u8 *address)
{
	u8 byte;

	if (copy_from_kernel_nofault(&byte, address, 1))
		return false;
	pagefault_disable();
	__put_kernel_nofault(address, &byte, u8, fault);
	pagefault_enable();
	return true;
fault:
	pagefault_enable();
	return false;
}

/*
 * Functions that are held and could be written to, where they are executed or
 * through the direct map.
 */
static int writable_get(void *data, u64 *count)
{
	struct piece *piece;

	guard(mutex)(&control_mutex);
	*count = 0;
	list_for_each_entry(piece, &held, list)
		*count += can_write(piece->text) ||
			can_write(page_address(vmalloc_to_page(piece->text)));
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(writable_fops, writable_get, NULL, "%llu\n");

static bool has_trap(void *address)
{
	u8 byte;

	/* Where nothing is mapped nothing can be executed either. */
	return copy_from_kernel_nofault(&byte, address, 1) || byte == TRAP;
}

/* Pieces that were freed and do not trap everywhere. */
static int stale_get(void *data, u64 *count)
{
	struct piece *piece;
	size_t i;

	guard(mutex)(&control_mutex);
	*count = 0;
	list_for_each_entry(piece, &freed, list) {
		for (i = 0; i < piece->len && has_trap(piece->text + i); i++)
			;
		*count += i < piece->len;
	}
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(stale_fops, stale_get, NULL, "%llu\n");

/* What is called although it was freed, and how often it trapped. */
static void *trapping;
static u64 nr_traps;

static int trapped(struct notifier_block *nb, unsigned long event, void *data)
{
	struct die_args *args = data;

	if (event != DIE_INT3 || args->regs->ip != (unsigned long)trapping + 1)
		return NOTIFY_DONE;
	nr_traps++;
	int3_emulate_ret(args->regs);
	return NOTIFY_STOP;
}

static struct notifier_block trap_notifier = {
	.notifier_call = trapped,
	.priority = INT_MAX,
};

/* Calls a function that was freed; how often that trapped. */
static int traps_get(void *data, u64 *count)
{
	struct code code = make_code(1);
	void *neighbour, *text;

	guard(mutex)(&control_mutex);
	/* Keeps the slab. */
	neighbour = jit_alloc(code.bytes, CODE_LEN);
	text = jit_alloc(code.bytes, CODE_LEN);
	if (!neighbour || !text) {
		jit_free(neighbour);
		jit_free(text);
		return -ENOMEM;
	}
	trapping = text;
	nr_traps = 0;
	jit_free(text);
	register_die_notifier(&trap_notifier);
	call(text);
	unregister_die_notifier(&trap_notifier);
	jit_free(neighbour);
	*count = nr_traps;
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(traps_fops, traps_get, NULL, "%llu\n");

/*
 * Makes mistakes, each of which should give an error or a message; how many
 * were let pass or changed something.
 */
static int mistakes_get(void *data, u64 *count)
{
	struct code code = make_code(1), other = make_code(2);
	u8 *text, *large, *neighbour;
	u64 passed = 0;

	guard(mutex)(&control_mutex);
	text = jit_alloc(code.bytes, CODE_LEN);
	neighbour = jit_alloc(other.bytes, CODE_LEN);
	large = jit_alloc(NULL, 2 * PAGE_SIZE);
	if (!text || !neighbour || !large) {
		jit_free(text);
		jit_free(neighbour);
		jit_free(large);
		return -ENOMEM;
	}
	/* Beyond what was asked for, though the object has room for it. */
	passed += !jit_update(text + 1, other.bytes, CODE_LEN);
	passed += !jit_update(large + PAGE_SIZE, vmalloc_to_page, PAGE_SIZE + 1);
	passed += !jit_update(&code, other.bytes, CODE_LEN);
	passed += !jit_update(mistakes_get, other.bytes, CODE_LEN);
	jit_free(text + 1);
	jit_free(large + PAGE_SIZE);
	jit_free(&code);
	jit_free(mistakes_get);
	passed += call(text) != 1;
	/* It is still there. */
	passed += jit_update(text, code.bytes, CODE_LEN) != 0;
	jit_free(text);
	passed += !jit_update(text, other.bytes, CODE_LEN);
	jit_free(text);
	jit_free(large);
	jit_free(large);
	passed += call(neighbour) != 2;
	jit_free(neighbour);
	passed += jit_alloc(NULL, 0) != NULL;
	passed += jit_alloc(NULL, SIZE_MAX) != NULL;
	*count = passed;
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(mistakes_fops, mistakes_get, NULL, "%llu\n");

/* How often branch predictors are flushed for memory that was freed once. */
static int flushes_get(void *data, u64 *count)
{
	void *neighbour, *text[2] = {};
	unsigned int i;

	guard(mutex)(&control_mutex);
	neighbour = jit_alloc_flushed(CODE_LEN, count_flush);
	text[0] = jit_alloc(NULL, CODE_LEN);
	jit_free(text[0]);
	nr_flushes = 0;
	for (i = 0; i < ARRAY_SIZE(text); i++)
		text[i] = jit_alloc_flushed(CODE_LEN, count_flush);
	for (i = 0; i < ARRAY_SIZE(text); i++)
		jit_free(text[i]);
	jit_free(neighbour);
	*count = nr_flushes;
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(flushes_fops, flushes_get, NULL, "%llu\n");

/* Threads. */

/* What each of them does so many times. */
static u32 loops = 1000;

/* Pieces that each has at a time in a stress run. */
#define AT_ONCE 16

struct worker {
	struct task_struct *task;
	bool (*run)(struct worker *worker);
	struct rnd_state state;
	struct completion *go;
	struct completion done;
	atomic_t *waiting;
	void **text;
	bool allocates;
	bool failed;
	u64 cycles;
};

/* Allocates, changes, calls and frees; every function is the thread's own. */
static bool stress(struct worker *worker)
{
	struct piece pieces[AT_ONCE] = {};
	bool fine = true;
	struct code code;
	unsigned int i;

	for (i = 0; i < loops && fine; i++) {
		struct piece *piece = &pieces[prandom_u32_state(&worker->state) % AT_ONCE];

		if (piece->text) {
			fine = call(piece->text) == piece->value;
			jit_free(piece->text);
		}
		piece->value = prandom_u32_state(&worker->state);
		piece->len = any_len(&worker->state);
		code = make_code(piece->value);
		if (i % 2) {
			piece->text = jit_alloc_flushed(piece->len, count_flush);
			fine = fine && piece->text &&
				!jit_update(piece->text, code.bytes, CODE_LEN);
		} else {
			u8 *bytes = kmalloc(piece->len, GFP_KERNEL);

			if (bytes) {
				memset(bytes, TRAP, piece->len);
				memcpy(bytes, code.bytes, CODE_LEN);
			}
			piece->text = bytes ? jit_alloc(bytes, piece->len) : NULL;
			kfree(bytes);
		}
		fine = fine && piece->text && call(piece->text) == piece->value;
	}
	for (i = 0; i < AT_ONCE; i++)
		jit_free(pieces[i].text);
	return fine;
}

/* Allocates, or frees what was allocated. */
static bool bench(struct worker *worker)
{
	bool fine = true;
	unsigned int i;

	for (i = 0; i < loops; i++) {
		if (!worker->allocates) {
			jit_free(worker->text[i]);
			continue;
		}
		worker->text[i] = jit_alloc(NULL, len ?: 256);
		fine = fine && worker->text[i];
	}
	return fine;
}

static int worker_main(void *data)
{
	struct worker *worker = data;
	cycles_t begin;

	atomic_dec(worker->waiting);
	wait_for_completion(worker->go);
	begin = get_cycles();
	worker->failed = !worker->run(worker);
	worker->cycles = get_cycles() - begin;
	complete(&worker->done);
	return 0;
}

/* What came of a run, for "result". */
static struct {
	u64 threads, ops, ns, cycles, failed;
} result[2];

static int run_all(struct worker *workers, unsigned int count, int slot)
{
	DECLARE_COMPLETION_ONSTACK(go);
	atomic_t waiting = ATOMIC_INIT(0);
	unsigned int i, started;
	ktime_t begin;
	int err = 0;

	for (started = 0; started < count; started++) {
		struct worker *worker = &workers[started];
		struct task_struct *task;

		worker->go = &go;
		worker->waiting = &waiting;
		init_completion(&worker->done);
		task = kthread_create(worker_main, worker, "jit_test/%u", started);
		if (IS_ERR(task)) {
			err = PTR_ERR(task);
			break;
		}
		worker->task = get_task_struct(task);
		kthread_bind(task, cpumask_nth(started % num_online_cpus(), cpu_online_mask));
		atomic_inc(&waiting);
		wake_up_process(task);
	}
	while (atomic_read(&waiting))
		msleep(20);
	begin = ktime_get();
	complete_all(&go);
	for (i = 0; i < started; i++)
		wait_for_completion(&workers[i].done);
	result[slot].ns = ktime_to_ns(ktime_sub(ktime_get(), begin));
	result[slot].threads = started;
	result[slot].ops = (u64)started * loops;
	result[slot].cycles = 0;
	result[slot].failed = 0;
	for (i = 0; i < started; i++) {
		kthread_stop_put(workers[i].task);
		result[slot].cycles += workers[i].cycles;
		result[slot].failed += workers[i].failed;
	}
	return err ?: result[slot].failed ? -EIO : 0;
}

static void free_workers(struct worker *workers, unsigned int count)
{
	unsigned int i;

	for (i = 0; i < count; i++)
		kvfree(workers[i].text);
	kvfree(workers);
}

static struct worker *make_workers(unsigned int count, bool (*run)(struct worker *),
				   bool with_text)
{
	struct worker *workers = kvzalloc_objs(*workers, count);
	unsigned int i;

	for (i = 0; workers && i < count; i++) {
		workers[i].run = run;
		workers[i].allocates = true;
		prandom_seed_state(&workers[i].state, i + 1);
		if (!with_text)
			continue;
		workers[i].text = kvzalloc_objs(void *, loops);
		if (!workers[i].text) {
			free_workers(workers, count);
			return NULL;
		}
	}
	return workers;
}

/* Written: so many threads allocate, change, call and free "loops" functions. */
static int stress_set(void *data, u64 count)
{
	struct worker *workers;
	int err;

	guard(mutex)(&control_mutex);
	if (!count || count > 64)
		return -EINVAL;
	workers = make_workers(count, stress, false);
	if (!workers)
		return -ENOMEM;
	err = run_all(workers, count, 0);
	memset(&result[1], 0, sizeof(result[1]));
	free_workers(workers, count);
	return err;
}
DEFINE_DEBUGFS_ATTRIBUTE(stress_fops, NULL, stress_set, "%llu\n");

/*
 * Written: so many threads, each on a CPU of its own, allocate "loops" pieces of
 * "len" bytes (256 if 0), then free them.
 */
static int bench_set(void *data, u64 count)
{
	struct worker *workers;
	unsigned int i;
	int err;

	guard(mutex)(&control_mutex);
	if (!count || count > 64)
		return -EINVAL;
	workers = make_workers(count, bench, true);
	if (!workers)
		return -ENOMEM;
	err = run_all(workers, count, 0);
	for (i = 0; i < count; i++)
		workers[i].allocates = false;
	err = run_all(workers, count, 1) ?: err;
	free_workers(workers, count);
	return err;
}
DEFINE_DEBUGFS_ATTRIBUTE(bench_fops, NULL, bench_set, "%llu\n");

/* Of the last stress (as "alloc") or bench: cycles are those of all threads. */
static int result_show(struct seq_file *m, void *private)
{
	unsigned int i;

	guard(mutex)(&control_mutex);
	for (i = 0; i < ARRAY_SIZE(result); i++)
		seq_printf(m, "%s threads %llu ops %llu ns %llu cycles %llu failed %llu\n",
			   i ? "free" : "alloc", result[i].threads, result[i].ops,
			   result[i].ns, result[i].cycles, result[i].failed);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(result);

static struct dentry *dir;

static int __init jit_test_init(void)
{
	if (!IS_ENABLED(CONFIG_JITALLOC))
		return -ENODEV;
	prandom_seed_state(&control_state, 1);
	dir = debugfs_create_dir("jit_test", NULL);
	debugfs_create_u32("len", 0600, dir, &len);
	debugfs_create_u32("loops", 0600, dir, &loops);
	debugfs_create_file("held", 0600, dir, NULL, &held_fops);
	debugfs_create_file("wrong", 0400, dir, NULL, &wrong_fops);
	debugfs_create_file("update", 0200, dir, NULL, &update_fops);
	debugfs_create_file("writable", 0400, dir, NULL, &writable_fops);
	debugfs_create_file("stale", 0400, dir, NULL, &stale_fops);
	debugfs_create_file("traps", 0400, dir, NULL, &traps_fops);
	debugfs_create_file("mistakes", 0400, dir, NULL, &mistakes_fops);
	debugfs_create_file("flushes", 0400, dir, NULL, &flushes_fops);
	debugfs_create_file("stress", 0200, dir, NULL, &stress_fops);
	debugfs_create_file("bench", 0200, dir, NULL, &bench_fops);
	debugfs_create_file("result", 0400, dir, NULL, &result_fops);
	return 0;
}

static void __exit jit_test_exit(void)
{
	debugfs_remove(dir);
	while (nr_held)
		drop_one();
	forget(&freed);
}

module_init(jit_test_init);
module_exit(jit_test_exit);
MODULE_DESCRIPTION("User of jit_alloc() for tests");
MODULE_LICENSE("GPL");
