/* SPDX-License-Identifier: GPL-2.0 */
/*
 * As much of libcap as the kernel's memfd_secret test uses, so that it can be
 * built where libcap is not: a set without any capability, which is applied.
 */
#ifndef _FREEPAGE_SYS_CAPABILITY_H
#define _FREEPAGE_SYS_CAPABILITY_H

#include <linux/capability.h>
#include <sys/syscall.h>
#include <unistd.h>

#define cap_t struct __user_cap_data_struct *

static inline cap_t cap_init(void)
{
	static struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3];

	return none;
}

static inline int cap_set_proc(cap_t cap)
{
	struct __user_cap_header_struct header = {
		.version = _LINUX_CAPABILITY_VERSION_3,
	};

	return syscall(__NR_capset, &header, cap);
}

#endif /* _FREEPAGE_SYS_CAPABILITY_H */
