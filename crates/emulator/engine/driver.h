// The driver's objects. Every call takes one lock: the emulated device does one thing at a time.
#pragma once

#include <deque>
#include <mutex>
#include <set>

#include "engine.h"
#include "image.h"
#include "library.h"

namespace emu {

// CUresult values that are used by name.
enum Result {
    kSuccess = 0,
    kInvalidValue = 1,
    kOutOfMemory = 2,
    kNotInitialized = 3,
    kInvalidDevice = 101,
    kInvalidImage = 200,
    kInvalidContext = 201,
    kFileNotFound = 301,
    kInvalidHandle = 400,
    kNotFound = 500,
    kNotReady = 600,
    kIllegalAddress = 700,
    kLaunchOutOfResources = 701,
    kLaunchFailed = 719,
    kNotSupported = 801,
    kCaptureUnsupported = 900,
    kCaptureInvalidated = 901,
    kCaptureMerge = 902,
    kCaptureUnmatched = 903,
    kCaptureUnjoined = 904,
    kCaptureIsolation = 905,
    kCaptureImplicit = 906,
    kCapturedEvent = 907,
};

using Op = std::function<int()>;

struct Graph {
    std::vector<Op> nodes;  // in capture order, which is one valid order
    std::vector<std::shared_ptr<Chain>> chains;  // of its kernels
};

struct Stream;

struct Capture {
    Graph* graph;
    Stream* origin;
    std::set<Stream*> streams;   // origin and those that joined through events
    std::set<Stream*> unjoined;  // with work the origin has not waited for
    int mode;
    bool invalid = false;
};

// One recording of an event.
struct Record {
    Stream* stream;
    uint64_t sequence;
    bool done = false;
    double milliseconds = 0;
    std::shared_ptr<Capture> capture;
};

struct Event {
    unsigned flags;
    std::shared_ptr<Record> record;
};

struct Stream {
    bool blocking = true;  // synchronises with the null stream
    int priority = 0;
    std::deque<std::pair<uint64_t, Op>> queue;  // lazy streams only
    std::shared_ptr<Capture> capture;
    std::shared_ptr<Chain> chain;  // of the kernel that was submitted last, if nothing else was since
};

struct Function {
    std::string name;
    KernelImage image;
    int max_dynamic_shared;
    int carveout = -1;
    ptx::Kernel* ptx = nullptr;  // in the module's image
};

struct Module {
    Image image;
    ptx::Module ptx;
    std::map<std::string, std::unique_ptr<Function>> functions;
};

extern std::recursive_mutex driver_lock;
extern bool initialised;
extern int sticky_error;
extern Stream null_stream;
extern int driver_version;  // of CUDA, by thousands

Stream* stream_of(void* handle);  // null when unknown
int submit(Stream* stream, Op op);
void run_stream(Stream* stream, uint64_t up_to = UINT64_MAX);
void run_all_streams();
int forbid_during_capture();  // an error when a capture forbids calls like this one, and invalidates it

void write_report();

struct Limits {
    int arch, multiprocessors;
    int shared_optin, shared_per_multiprocessor;  // bytes
    int threads_per_multiprocessor, blocks_per_multiprocessor;
    int l2;  // bytes
    int shared_per_block = 48 << 10, registers = 65536;
};
Limits device_limits();  // of the card that the device looks like

bool context_is_current();  // on the calling thread

// At the head of every call: the lock, then what a broken context answers.
#define EMU_API extern "C" __attribute__((visibility("default"))) int
#define EMU_ENTER_ANY std::lock_guard<std::recursive_mutex> emu_guard(driver_lock)
#define EMU_ENTER                                                                                                      \
    EMU_ENTER_ANY;                                                                                                     \
    if (!initialised) return kNotInitialized;                                                                          \
    if (!context_is_current()) return kInvalidContext;                                                                 \
    if (sticky_error) return sticky_error

}  // namespace emu
