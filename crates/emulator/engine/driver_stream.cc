// Streams and events.
//
// Eager streams run each operation in the call that submits it. Lazy ones keep a queue that runs only as far as
// somebody waits for it, so a missing event or synchronisation leaves stale data behind instead of working by luck.
#include <time.h>

#include "driver.h"

namespace emu {

Stream null_stream;
std::set<Stream*> streams;
std::set<Event*> events;
std::set<std::shared_ptr<Capture>> captures;

namespace {

uint64_t sequence = 0;

double now_milliseconds() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return double(t.tv_sec) * 1e3 + double(t.tv_nsec) * 1e-6;
}

void execute(const Op& op) {
    if (sticky_error) return;
    if (const int error = op()) sticky_error = error;
}

Event* event_of(void* handle) {
    Event* e = static_cast<Event*>(handle);
    return events.count(e) ? e : nullptr;
}

}  // namespace

Stream* stream_of(void* handle) {
    // 0, CU_STREAM_LEGACY and CU_STREAM_PER_THREAD.
    if (reinterpret_cast<uintptr_t>(handle) <= 2) return &null_stream;
    Stream* s = static_cast<Stream*>(handle);
    return streams.count(s) ? s : nullptr;
}

void run_stream(Stream* stream, uint64_t up_to) {
    while (!stream->queue.empty() && stream->queue.front().first <= up_to) {
        const uint64_t first = stream->queue.front().first;
        const Op op = std::move(stream->queue.front().second);
        stream->queue.pop_front();
        // Blocking streams and the null stream keep the order of submission among each other.
        if (stream == &null_stream) {
            for (Stream* s : streams) {
                if (s->blocking) run_stream(s, first);
            }
        } else if (stream->blocking) {
            run_stream(&null_stream, first);
        }
        execute(op);
    }
}

void run_all_streams() {
    run_stream(&null_stream);
    for (Stream* s : streams) run_stream(s);
}

int submit(Stream* stream, Op op) {
    stream->chain = nullptr;  // a kernel goes on with it
    if (stream->capture) {
        Capture& c = *stream->capture;
        if (c.invalid) return kCaptureInvalidated;
        c.graph->nodes.push_back(std::move(op));
        if (stream != c.origin) c.unjoined.insert(stream);
        return 0;
    }
    if (stream == &null_stream) {
        for (Stream* s : streams) {
            if (s->capture && s->blocking) {
                s->capture->invalid = true;
                return kCaptureImplicit;
            }
        }
    }
    ++sequence;
    if (config.lazy_streams) {
        stream->queue.push_back({sequence, std::move(op)});
    } else {
        execute(op);
    }
    return 0;
}

int forbid_during_capture() {
    for (auto& c : captures) {
        if (c->mode == 2) continue;  // relaxed
        c->invalid = true;
        return kCaptureUnsupported;
    }
    return 0;
}

}  // namespace emu

using namespace emu;

EMU_API cuStreamCreateWithPriority(void** stream, unsigned flags, int priority) {
    EMU_ENTER;
    Stream* s = new Stream;
    s->blocking = !(flags & 1);
    s->priority = priority;
    streams.insert(s);
    return *stream = s, 0;
}
EMU_API cuStreamCreate(void** stream, unsigned flags) { return cuStreamCreateWithPriority(stream, flags, 0); }

EMU_API cuStreamDestroy_v2(void* handle) {
    EMU_ENTER_ANY;
    Stream* s = stream_of(handle);
    if (!s || s == &null_stream) return kInvalidHandle;
    run_stream(s);
    if (s->capture) captures.erase(s->capture);
    for (Event* e : events) {
        if (e->record && e->record->stream == s) e->record->stream = &null_stream;
    }
    streams.erase(s);
    delete s;
    return sticky_error;
}

EMU_API cuStreamSynchronize(void* handle) {
    EMU_ENTER;
    Stream* s = stream_of(handle);
    if (!s) return kInvalidHandle;
    if (s->capture) {
        s->capture->invalid = true;
        return kCaptureUnsupported;
    }
    run_stream(s);
    return sticky_error;
}

// Polling makes progress by one operation, so that a caller who polls sees "not ready" first.
EMU_API cuStreamQuery(void* handle) {
    EMU_ENTER;
    Stream* s = stream_of(handle);
    if (!s) return kInvalidHandle;
    if (s->capture) {
        s->capture->invalid = true;
        return kCaptureUnsupported;
    }
    if (s->queue.empty()) return 0;
    run_stream(s, s->queue.front().first);
    return sticky_error ? sticky_error : kNotReady;
}

EMU_API cuStreamWaitEvent(void* handle, void* event, unsigned) {
    EMU_ENTER;
    Stream* s = stream_of(handle);
    Event* e = event_of(event);
    if (!s || !e) return kInvalidHandle;
    const std::shared_ptr<Record> record = e->record;
    if (s->capture) {
        Capture& c = *s->capture;
        if (c.invalid) return kCaptureInvalidated;
        if (!record) return 0;
        s->chain = nullptr;  // what comes next depends on two
        if (!record->capture) {
            c.invalid = true;
            return kCaptureIsolation;
        }
        if (record->capture != s->capture) {
            c.invalid = true;
            return kCaptureMerge;
        }
        if (s == c.origin) c.unjoined.erase(record->stream);
        return 0;
    }
    if (!record) return 0;
    if (record->capture) {
        // Waiting for a captured event draws this stream into the capture.
        if (record->capture->invalid) return kCaptureInvalidated;
        if (s == &null_stream) return kCaptureImplicit;
        s->capture = record->capture;
        s->chain = nullptr;
        s->capture->streams.insert(s);
        s->capture->unjoined.insert(s);
        return 0;
    }
    return submit(s, [record] {
        if (!record->done) run_stream(record->stream, record->sequence);
        return sticky_error;
    });
}

EMU_API cuStreamGetPriority(void* handle, int* priority) {
    EMU_ENTER;
    Stream* s = stream_of(handle);
    if (!s) return kInvalidHandle;
    return *priority = s->priority, 0;
}
EMU_API cuStreamGetFlags(void* handle, unsigned* flags) {
    EMU_ENTER;
    Stream* s = stream_of(handle);
    if (!s) return kInvalidHandle;
    return *flags = !s->blocking, 0;
}
EMU_API cuStreamAttachMemAsync(void*, uint64_t, size_t, unsigned) { return 0; }

EMU_API cuLaunchHostFunc(void* handle, void (*function)(void*), void* argument) {
    EMU_ENTER;
    Stream* s = stream_of(handle);
    if (!s) return kInvalidHandle;
    return submit(s, [=] { return function(argument), 0; });
}

// ---- events

EMU_API cuEventCreate(void** event, unsigned flags) {
    EMU_ENTER;
    Event* e = new Event{flags, nullptr};
    events.insert(e);
    return *event = e, 0;
}

EMU_API cuEventDestroy_v2(void* handle) {
    EMU_ENTER_ANY;
    Event* e = event_of(handle);
    if (!e) return kInvalidHandle;
    events.erase(e);
    delete e;
    return sticky_error;
}

EMU_API cuEventRecord(void* handle, void* stream) {
    EMU_ENTER;
    Event* e = event_of(handle);
    Stream* s = stream_of(stream);
    if (!e || !s) return kInvalidHandle;
    auto record = std::make_shared<Record>();
    record->stream = s;
    if (s->capture) {
        if (s->capture->invalid) return kCaptureInvalidated;
        record->capture = s->capture;
        e->record = record;
        return 0;
    }
    e->record = record;
    record->sequence = sequence + 1;
    return submit(s, [record] {
        record->done = true;
        record->milliseconds = now_milliseconds();
        return 0;
    });
}
EMU_API cuEventRecordWithFlags(void* handle, void* stream, unsigned) { return cuEventRecord(handle, stream); }

EMU_API cuEventSynchronize(void* handle) {
    EMU_ENTER;
    Event* e = event_of(handle);
    if (!e) return kInvalidHandle;
    if (!e->record) return 0;
    if (e->record->capture) {
        e->record->capture->invalid = true;
        return kCapturedEvent;
    }
    if (!e->record->done) run_stream(e->record->stream, e->record->sequence);
    return sticky_error;
}

EMU_API cuEventQuery(void* handle) {
    EMU_ENTER;
    Event* e = event_of(handle);
    if (!e) return kInvalidHandle;
    if (!e->record || e->record->done) return 0;
    if (e->record->capture) {
        e->record->capture->invalid = true;
        return kCapturedEvent;
    }
    run_stream(e->record->stream, e->record->sequence);
    return sticky_error ? sticky_error : kNotReady;
}

EMU_API cuEventElapsedTime_v2(float* milliseconds, void* from, void* to) {
    EMU_ENTER;
    Event *a = event_of(from), *b = event_of(to);
    if (!a || !b || (a->flags | b->flags) & 2 || !a->record || !b->record) return kInvalidHandle;
    if (!a->record->done || !b->record->done) return kNotReady;
    return *milliseconds = float(b->record->milliseconds - a->record->milliseconds), 0;
}
EMU_API cuEventElapsedTime(float* milliseconds, void* from, void* to) {
    return cuEventElapsedTime_v2(milliseconds, from, to);
}
