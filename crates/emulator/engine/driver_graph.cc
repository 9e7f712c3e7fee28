// Capture, instantiation and launch of graphs.
//
// A graph is the list of captured operations in the order of capture. Branches therefore run in that order too: a join
// that is missing inside a graph is found at the end of the capture (unjoined work) or not at all.
#include "driver.h"

namespace emu {

extern std::set<std::shared_ptr<Capture>> captures;

namespace {

std::set<Graph*> graphs, executables;

void end_capture(const std::shared_ptr<Capture>& capture) {
    for (Stream* s : capture->streams) {
        s->capture = nullptr;
        s->chain = nullptr;
    }
    captures.erase(capture);
}

}  // namespace
}  // namespace emu

using namespace emu;

EMU_API cuStreamBeginCapture_v2(void* handle, int mode) {
    EMU_ENTER;
    Stream* s = stream_of(handle);
    if (!s) return kInvalidHandle;
    if (s == &null_stream) return kCaptureUnsupported;
    if (s->capture) return kInvalidValue;
    auto capture = std::make_shared<Capture>();
    capture->graph = new Graph;
    capture->origin = s;
    capture->streams = {s};
    capture->mode = mode;
    captures.insert(capture);
    s->capture = capture;
    s->chain = nullptr;
    return 0;
}

EMU_API cuStreamEndCapture(void* handle, void** graph) {
    EMU_ENTER_ANY;
    *graph = nullptr;
    Stream* s = stream_of(handle);
    if (!s) return kInvalidHandle;
    const std::shared_ptr<Capture> capture = s->capture;
    if (!capture) return kInvalidValue;
    if (s != capture->origin) return kCaptureUnmatched;
    end_capture(capture);
    const int error = sticky_error                 ? sticky_error
                      : capture->invalid           ? kCaptureInvalidated
                      : !capture->unjoined.empty() ? kCaptureUnjoined
                                                   : 0;
    if (error) {
        delete capture->graph;
        return error;
    }
    graphs.insert(capture->graph);
    return *graph = capture->graph, 0;
}

EMU_API cuStreamIsCapturing(void* handle, int* status) {
    EMU_ENTER;
    Stream* s = stream_of(handle);
    if (!s) return kInvalidHandle;
    return *status = !s->capture ? 0 : s->capture->invalid ? 2 : 1, 0;
}
EMU_API cuThreadExchangeStreamCaptureMode(int* mode) { return *mode = 0, 0; }

EMU_API cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
    EMU_ENTER;
    Graph* g = static_cast<Graph*>(graph);
    if (!graphs.count(g)) return kInvalidValue;
    Graph* copy = new Graph(*g);
    executables.insert(copy);
    return *executable = copy, 0;
}

EMU_API cuGraphLaunch(void* executable, void* handle) {
    EMU_ENTER;
    Graph* g = static_cast<Graph*>(executable);
    Stream* s = stream_of(handle);
    if (!executables.count(g)) return kInvalidValue;
    if (!s) return kInvalidHandle;
    const auto what = std::make_shared<Graph>(*g);
    return submit(s, [what] {
        for (const Op& node : what->nodes) {
            if (const int error = node()) return error;
        }
        for (const auto& chain : what->chains) chain_begin(*chain);
        return 0;
    });
}

EMU_API cuGraphUpload(void* executable, void*) {
    EMU_ENTER;
    return executables.count(static_cast<Graph*>(executable)) ? 0 : kInvalidValue;
}
EMU_API cuGraphGetNodes(void* graph, void** nodes, size_t* count) {
    EMU_ENTER;
    if (!graphs.count(static_cast<Graph*>(graph))) return kInvalidValue;
    if (nodes) return kNotSupported;
    return *count = static_cast<Graph*>(graph)->nodes.size(), 0;
}
EMU_API cuGraphDestroy(void* graph) {
    EMU_ENTER_ANY;
    if (!graphs.erase(static_cast<Graph*>(graph))) return kInvalidValue;
    delete static_cast<Graph*>(graph);
    return sticky_error;
}
EMU_API cuGraphExecDestroy(void* executable) {
    EMU_ENTER_ANY;
    if (!executables.erase(static_cast<Graph*>(executable))) return kInvalidValue;
    delete static_cast<Graph*>(executable);
    return sticky_error;
}
