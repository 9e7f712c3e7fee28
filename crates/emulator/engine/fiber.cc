// Stacks and the switch between them.
//
// A fiber is a stack with a guard page below it; a thread gets one when it first runs and gives it back when it is
// done. Stack tops are staggered, because stacks at equal offsets would all compete for the same cache sets.
#include <sys/mman.h>

#include "engine.h"

namespace emu {
namespace {

constexpr size_t kStackBytes = 64 << 10, kGuardBytes = 4096;

char* stacks = nullptr;
std::vector<int> free_fibers;
void* main_sp = nullptr;

char* stack_base(int fiber) { return stacks + size_t(fiber) * kStackBytes; }

}  // namespace

// Saves the callee-saved registers on this stack, leaves its pointer in *save and continues on the other stack.
extern "C" void emu_switch(void** save, void* to);
extern "C" void emu_resume();
asm(R"(
.text
.globl emu_switch
.hidden emu_switch
.type emu_switch, @function
emu_switch:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
.globl emu_resume
.hidden emu_resume
emu_resume:
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
.size emu_switch, .-emu_switch
)");

void fiber_main();  // schedule.cc

void fiber_prepare(Thread& thread) {
    if (!stacks) {
        stacks = static_cast<char*>(mmap(nullptr, kStackBytes * kMaxThreads, PROT_READ | PROT_WRITE,
                                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        for (int i = 0; i < kMaxThreads; ++i) mprotect(stack_base(i), kGuardBytes, PROT_NONE);
        fibers_release_all();
    }
    thread.fiber = free_fibers.back();
    free_fibers.pop_back();
    uintptr_t top = reinterpret_cast<uintptr_t>(stack_base(thread.fiber)) + kStackBytes;
    top -= size_t(thread.fiber % 31) * 128;
    void** sp = reinterpret_cast<void**>(top);
    *--sp = nullptr;  // where fiber_main would return to: it never does
    *--sp = reinterpret_cast<void*>(&fiber_main);
    for (int i = 0; i < 6; ++i) *--sp = nullptr;
    thread.sp = sp;
}

void fibers_release_all() {
    free_fibers.clear();
    for (int i = kMaxThreads - 1; i >= 0; --i) free_fibers.push_back(i);
}

void fiber_release(int fiber) { free_fibers.push_back(fiber); }

bool fiber_stack_contains(const void* address) {
    return size_t(static_cast<const char*>(address) - stack_base(self->fiber)) < kStackBytes;
}

int fiber_guard_hit(const void* address) {
    const size_t offset = size_t(static_cast<const char*>(address) - stacks);
    if (!stacks || offset >= kStackBytes * kMaxThreads || offset % kStackBytes >= kGuardBytes) return -1;
    return int(offset / kStackBytes);
}

void fiber_switch(Thread& from, Thread& to) { emu_switch(&from.sp, to.sp); }
void fiber_enter(Thread& to) { emu_switch(&main_sp, to.sp); }
void fiber_switch_to_main(Thread& from) { emu_switch(&from.sp, main_sp); }
void* main_stack_pointer() { return main_sp; }

// Leaves a stack that nobody will come back to.
[[noreturn]] void fiber_leave(Thread* next) {
    void* ignored;
    emu_switch(&ignored, next ? next->sp : main_sp);
    __builtin_unreachable();
}
void fiber_abandon() { fiber_leave(nullptr); }

}  // namespace emu
