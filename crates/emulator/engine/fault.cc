// What goes wrong and where: fault records and the report.
//
// A fatal fault leaves the kernel at once with a CUDA error, as the device would; the others are what only a checker
// notices: they are recorded, the kernel goes on, and the launch fails at its end unless told otherwise.
#include <algorithm>

#include "engine.h"

namespace emu {

std::map<std::string, Counters> counters;

namespace {

struct Fault {
    std::string kind, kernel, at, message;
    uint32_t block[3], thread[3];
    bool inside;
    uint64_t site, count;
};
std::vector<Fault> faults;
constexpr size_t kMaxFaults = 200;
int launch_error = 0;
bool launch_faulted = false;

void record(const char* kind, Site site, const char* format, va_list arguments) {
    launch_faulted = true;
    const std::string kernel = run.launch ? run.launch->name : "";
    for (Fault& f : faults) {
        if (f.kind == kind && f.kernel == kernel && f.site == site.key()) {
            ++f.count;
            return;
        }
    }
    if (faults.size() >= kMaxFaults) return;
    char text[1024];
    vsnprintf(text, sizeof text, format, arguments);
    Fault f{kind, kernel, site.text(), text, {}, {}, self != nullptr, site.key(), 1};
    if (self) {
        memcpy(f.block, run.block, sizeof f.block);
        memcpy(f.thread, self->at, sizeof f.thread);
    }
    faults.push_back(std::move(f));
}

std::string base_name(const std::string& path) { return path.substr(path.rfind('/') + 1); }

// The bytes of the character at `s`, or 0 where UTF-8 has none.
size_t character_bytes(const std::string& s, size_t i) {
    const auto byte = [&](size_t k) { return i + k < s.size() ? uint8_t(s[i + k]) : uint8_t(0); };
    const uint8_t first = byte(0);
    if (first < 0x80) return 1;
    const size_t n = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
    uint32_t code = first & (0x7fu >> n);
    for (size_t k = 1; k < n; ++k) {
        if ((byte(k) & 0xc0) != 0x80) return 0;
        code = code << 6 | (byte(k) & 0x3f);
    }
    // Longer than need be, a half of a pair of UTF-16, or beyond the last one.
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    return first < 0xc0 || first > 0xf4 || code < least[n] || (code >= 0xd800 && code < 0xe000) || code > 0x10ffff ? 0 : n;
}

// A string of JSON. Names and paths may hold any bytes, and a message may have been cut inside a character.
std::string quoted(const std::string& s) {
    std::string out = "\"";
    for (size_t i = 0; i < s.size();) {
        const size_t n = character_bytes(s, i);
        if (!n) {
            out += "\xef\xbf\xbd";  // the replacement character
        } else if (n > 1) {
            out.append(s, i, n);
        } else if (s[i] == '"' || s[i] == '\\') {
            (out += '\\') += s[i];
        } else if (uint8_t(s[i]) >= 32) {
            out += s[i];
        }
        i += std::max(n, size_t(1));
    }
    return out + "\"";
}

}  // namespace

std::string Site::text() const { return file ? base_name(file) + ":" + std::to_string(line) : ""; }

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
    longjmp(*run.way_out, 1);
}

void fault_outside_kernel(const char* kind, const char* kernel, const char* format, ...) {
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (faults.size() < kMaxFaults) faults.push_back({kind, kernel, "", text, {}, {}, false, 0, 1});
}

int take_error() {
    const int error = launch_error ? launch_error : launch_faulted && config.faults_fail ? 719 : 0;
    launch_error = 0;
    launch_faulted = false;
    return error;
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
                 ":{\"launches\":%lu,\"checked_launches\":%lu,\"blocks\":%lu,\"threads\":%lu,\"bytes_read\":%lu,"
                 "\"bytes_written\":%lu,"
                 "\"unique_bytes_read\":%lu,\"unique_bytes_written\":%lu,\"sectors_read\":%lu,\"sectors_written\":%lu,"
                 "\"shared_wavefronts\":%lu,\"bank_conflicts\":%lu,\"matrix_flops\":%lu,\"instructions\":%lu,"
                 "\"dependent_launches\":%lu,\"early_bytes_read\":%lu}",
                 c.launches, c.checked_launches, c.blocks, c.threads,
                 c.bytes_read, c.bytes_written, c.unique_bytes_read, c.unique_bytes_written, c.sectors_read,
                 c.sectors_written, c.shared_wavefronts, c.bank_conflicts, c.matrix_flops, c.instructions,
                 c.dependent_launches, c.early_bytes_read);
        json += (first ? "" : ",") + quoted(name) + text;
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
                ",\"at\":" + quoted(f.at) + ",\"message\":" + quoted(f.message) +
                ",\"count\":" + std::to_string(f.count) + "}";
        first = false;
    }
    return json + "],\"profiler\":[" + std::to_string(profiler_calls[0]) + "," + std::to_string(profiler_calls[1]) + "]}";
}

}  // namespace emu
