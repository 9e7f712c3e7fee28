// What goes wrong and where: fault records, signals, the watchdog, the report.
//
// A fatal fault leaves the kernel at once with a CUDA error, as the device would; the others are what only a checker
// notices: they are recorded, the kernel goes on, and the launch fails at its end unless told otherwise. Signals are
// part of the kernel's run only: the handlers are there while it runs and give way to the previous ones afterwards.
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include <dlfcn.h>

#include "engine.h"

namespace emu {

std::map<std::string, Counters> counters;
extern uint64_t engine_steps;
bool library_contains(const Library& library, const void* address);
extern "C" void emu_resume();

namespace {

struct Fault {
    std::string kind, kernel, message;
    uint32_t block[3], thread[3];
    bool inside;
    Site site;
    uint64_t count;
};
std::vector<Fault> faults;
constexpr size_t kMaxFaults = 200;
int launch_error = 0;
bool launch_faulted = false;

void record(const char* kind, Site site, const char* format, va_list arguments) {
    launch_faulted = true;
    const std::string kernel = run.launch ? run.launch->name : "";
    for (Fault& f : faults) {
        if (f.kind == kind && f.kernel == kernel && f.site.key() == site.key()) {
            ++f.count;
            return;
        }
    }
    if (faults.size() >= kMaxFaults) return;
    char text[1024];
    vsnprintf(text, sizeof text, format, arguments);
    Fault f{kind, kernel, text, {}, {}, self != nullptr, site, 1};
    if (self) {
        memcpy(f.block, run.block, sizeof f.block);
        memcpy(f.thread, self->at, sizeof f.thread);
    }
    faults.push_back(std::move(f));
}

std::string base_name(const std::string& path) { return path.substr(path.rfind('/') + 1); }

// The innermost line that is not the shim's own, then the lines it was inlined into.
std::string source_line(const void* pc) {
    static std::map<const void*, std::string> known;
    std::string& text = known[pc];
    if (!text.empty()) return text;
    Dl_info info;
    if (!dladdr(pc, &info) || !info.dli_fname) return text = "unknown code";
    const size_t offset = size_t(static_cast<const char*>(pc) - static_cast<const char*>(info.dli_fbase));
    char command[4096];
    snprintf(command, sizeof command, "addr2line -i -e '%s' %#zx 2>/dev/null", info.dli_fname, offset - 1);
    if (FILE* pipe = popen(command, "r")) {
        char line[4096];
        while (fgets(line, sizeof line, pipe)) {
            std::string frame = base_name(line);
            frame = frame.substr(0, frame.find_first_of(" \n"));
            if (frame.empty() || frame[0] == '?' || frame.rfind("emu", 0) == 0) continue;
            text += text.empty() ? frame : " in " + frame;
        }
        pclose(pipe);
    }
    if (text.empty()) {
        char fallback[512];
        snprintf(fallback, sizeof fallback, "%s+%#zx",
                 info.dli_sname ? info.dli_sname : base_name(info.dli_fname).c_str(),
                 size_t(static_cast<const char*>(pc) -
                        static_cast<const char*>(info.dli_saddr ? info.dli_saddr : info.dli_fbase)));
        text = fallback;
    }
    return text;
}

std::string quoted(const std::string& s) {
    std::string out = "\"";
    for (char c : s) {
        if (c == '"' || c == '\\') out += '\\';
        if (static_cast<unsigned char>(c) >= 32) out += c;
    }
    return out + "\"";
}

// ---- signals

constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
struct sigaction previous[4], previous_timer;
stack_t previous_stack;
char* signal_stack = nullptr;
timer_t timer;
pid_t engine_thread = 0;
uint64_t steps_seen = 0;
int ticks_without_step = 0;

int timer_signal() { return SIGRTMIN + 7; }

void report(const char* kind, Site site, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    record(kind, site, format, arguments);
    va_end(arguments);
}

// Continues in the block runner as if the fiber had switched there.
void leave(ucontext_t* context, int error) {
    launch_error = error;
    context->uc_mcontext.gregs[REG_RSP] = reinterpret_cast<greg_t>(main_stack_pointer());
    context->uc_mcontext.gregs[REG_RIP] = reinterpret_cast<greg_t>(&emu_resume);
}

void on_signal(int signal, siginfo_t* info, void* raw) {
    ucontext_t* context = static_cast<ucontext_t*>(raw);
    const pid_t thread = pid_t(syscall(SYS_gettid));
    if (thread != engine_thread || !run.active) {
        for (int i = 0; i < 4; ++i) {
            if (kSignals[i] == signal) sigaction(signal, &previous[i], nullptr);  // it happens again and is theirs
        }
        return;
    }
    const void* address = info->si_addr;
    const Site site{nullptr, 0, reinterpret_cast<void*>(context->uc_mcontext.gregs[REG_RIP] + 1)};
    if (signal == SIGFPE) {
        report("division by zero", site, "an integer division by zero (the device would return garbage)");
        leave(context, 719);
    } else if (signal == SIGILL) {
        report("trap", site, "the compiler found undefined behaviour here");
        leave(context, 719);
    } else if (fiber_guard_hit(address) >= 0) {
        report("stack overflow", site, "a thread's stack of 60 KiB ran over");
        leave(context, 719);
    } else if (signal == SIGSEGV && info->si_code == SI_KERNEL) {
        report("misaligned access", site,
               "a 16-byte access at an address that is not a multiple of 16, or a wild pointer");
        leave(context, 716);
    } else {
        report("out of bounds", site, "access at %p: %s", address,
               memory_in_arena(address) ? memory_describe(address).c_str() : "not device memory");
        leave(context, 700);
    }
}

void on_timer(int, siginfo_t*, void* raw) {
    if (!run.active) return;
    if (steps_seen != engine_steps) {
        steps_seen = engine_steps;
        ticks_without_step = 0;
    } else if (++ticks_without_step >= config.watchdog_seconds) {
        ucontext_t* context = static_cast<ucontext_t*>(raw);
        const void* pc = reinterpret_cast<void*>(context->uc_mcontext.gregs[REG_RIP]);
        if (!library_contains(*run.library, pc)) return;  // not in the middle of the engine or the allocator
        report("endless loop", Site{nullptr, 0, static_cast<const char*>(pc) + 1},
               "no synchronisation, yield or exit for %d s", config.watchdog_seconds);
        leave(context, 719);
    }
}

}  // namespace

std::string Site::text() const {
    if (file) return base_name(file) + ":" + std::to_string(line);
    return pc ? source_line(pc) : "";
}

std::string thread_name(const Thread& t) {
    char text[64];
    snprintf(text, sizeof text, "thread (%u,%u,%u)", t.at[0], t.at[1], t.at[2]);
    return text;
}

void fault(const char* kind, Site site, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    record(kind, site, format, arguments);
    va_end(arguments);
}

void fatal(int error, const char* kind, Site site, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    record(kind, site, format, arguments);
    va_end(arguments);
    launch_error = error;
    if (run.interpreter) longjmp(*run.interpreter, 1);
    fiber_abandon();
}

void fault_outside_kernel(const char* kind, const char* kernel, const char* format, ...) {
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (faults.size() < kMaxFaults) faults.push_back({kind, kernel, text, {}, {}, false, {}, 1});
}

void set_error(int error) { launch_error = error; }
bool kernel_aborted() { return launch_error != 0; }

int take_error() {
    const int error = launch_error ? launch_error : launch_faulted && config.faults_fail ? 719 : 0;
    launch_error = 0;
    launch_faulted = false;
    return error;
}

void guard_begin() {
    constexpr size_t kSignalStack = 256 << 10;
    if (!signal_stack) signal_stack = new char[kSignalStack];
    engine_thread = pid_t(syscall(SYS_gettid));
    ticks_without_step = 0;
    stack_t stack = {};
    stack.ss_sp = signal_stack;
    stack.ss_size = kSignalStack;
    sigaltstack(&stack, &previous_stack);
    struct sigaction action = {};
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
    action.sa_sigaction = on_signal;
    for (int i = 0; i < 4; ++i) sigaction(kSignals[i], &action, &previous[i]);
    action.sa_sigaction = on_timer;
    sigaction(timer_signal(), &action, &previous_timer);
    struct sigevent event = {};
    event.sigev_notify = SIGEV_THREAD_ID;
    event.sigev_signo = timer_signal();
    event._sigev_un._tid = engine_thread;
    timer_create(CLOCK_MONOTONIC, &event, &timer);
    const struct itimerspec every_second = {{1, 0}, {1, 0}};
    timer_settime(timer, 0, &every_second, nullptr);
}

void guard_end() {
    timer_delete(timer);
    for (int i = 0; i < 4; ++i) sigaction(kSignals[i], &previous[i], nullptr);
    // A last tick may still be on its way, so this handler stays; it does nothing outside a kernel.
    sigaltstack(&previous_stack, nullptr);
}

void reset_reports() {
    faults.clear();
    counters.clear();
    launch_error = 0;
    launch_faulted = false;
}

uint64_t profiler_calls[2];

std::string report_json() {
    std::string json = "{\"kernels\":{";
    bool first = true;
    for (auto& [name, c] : counters) {
        char text[1024];
        snprintf(text, sizeof text,
                 "%s%s:{\"launches\":%lu,\"checked_launches\":%lu,\"blocks\":%lu,\"threads\":%lu,\"bytes_read\":%lu,"
                 "\"bytes_written\":%lu,"
                 "\"unique_bytes_read\":%lu,\"unique_bytes_written\":%lu,\"sectors_read\":%lu,\"sectors_written\":%lu,"
                 "\"shared_wavefronts\":%lu,\"bank_conflicts\":%lu,\"matrix_flops\":%lu,\"instructions\":%lu}",
                 first ? "" : ",", quoted(name).c_str(), c.launches, c.checked_launches, c.blocks, c.threads,
                 c.bytes_read, c.bytes_written, c.unique_bytes_read, c.unique_bytes_written, c.sectors_read,
                 c.sectors_written, c.shared_wavefronts, c.bank_conflicts, c.matrix_flops, c.instructions);
        json += text;
        first = false;
    }
    json += "},\"faults\":[";
    first = true;
    for (const Fault& f : faults) {
        char where[160] = "";
        if (f.inside) {
            snprintf(where, sizeof where, ",\"block\":[%u,%u,%u],\"thread\":[%u,%u,%u]", f.block[0], f.block[1],
                     f.block[2], f.thread[0], f.thread[1], f.thread[2]);
        }
        json += first ? "" : ",";
        json += "{\"kind\":" + quoted(f.kind) + ",\"kernel\":" + quoted(f.kernel) + where +
                ",\"at\":" + quoted(f.site.text()) + ",\"message\":" + quoted(f.message) +
                ",\"count\":" + std::to_string(f.count) + "}";
        first = false;
    }
    return json + "],\"profiler\":[" + std::to_string(profiler_calls[0]) + "," + std::to_string(profiler_calls[1]) + "]}";
}

}  // namespace emu
