// <linux/kvm.h> as C++ must see it. Include this, never <linux/kvm.h>.
//
// In C++ the kernel's __DECLARE_FLEX_ARRAY wraps the array in a struct with an empty member, which C++ gives a size:
// struct kvm_cpuid2 and its like become 12 bytes instead of 8, and since the size is part of the ioctl's number,
// KVM_SET_CPUID2 and others then fail with EINVAL. A zero-length array has the layout that the kernel means.
#pragma once

#include <linux/stddef.h>
#include <linux/types.h>

#undef __DECLARE_FLEX_ARRAY
#define __DECLARE_FLEX_ARRAY(TYPE, NAME) TYPE NAME[0]

#include <linux/kvm.h>

// A header that came before this one and included <linux/kvm.h> itself shows up here.
static_assert(sizeof(struct kvm_cpuid2) == 8);
static_assert(sizeof(struct kvm_msrs) == 8);
static_assert(sizeof(struct kvm_msr_list) == 4);
static_assert(sizeof(struct kvm_signal_mask) == 4);
static_assert(sizeof(struct kvm_irq_routing) == 8);
static_assert(sizeof(struct kvm_reg_list) == 8);
static_assert(sizeof(struct kvm_xsave) == 4096);
static_assert(sizeof(struct kvm_regs) == 144);
static_assert(sizeof(struct kvm_sregs) == 312);
static_assert(sizeof(struct kvm_device_attr) == 24);
