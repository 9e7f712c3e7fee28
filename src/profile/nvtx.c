/* NVTX's header-only library behind five functions. Without a profiler its functions return at once; nothing is linked. */
#include <nvtx3/nvToolsExt.h>

static nvtxDomainHandle_t domain;

void ggro_nvtx_open(void) {
    if (!domain) domain = nvtxDomainCreateA("ggro");
}

void* ggro_nvtx_name(unsigned category, const char* name) {
    nvtxDomainNameCategoryA(domain, category, name);
    return nvtxDomainRegisterStringA(domain, name);
}

void ggro_nvtx_push(void* name, unsigned category, unsigned argb, unsigned long long payload) {
    nvtxEventAttributes_t attributes = {0};
    attributes.version = NVTX_VERSION;
    attributes.size = NVTX_EVENT_ATTRIB_STRUCT_SIZE;
    attributes.category = category;
    attributes.colorType = NVTX_COLOR_ARGB;
    attributes.color = argb;
    attributes.payloadType = NVTX_PAYLOAD_TYPE_UNSIGNED_INT64;
    attributes.payload.ullValue = payload;
    attributes.messageType = NVTX_MESSAGE_TYPE_REGISTERED;
    attributes.message.registered = (nvtxStringHandle_t)name;
    nvtxDomainRangePushEx(domain, &attributes);
}

void ggro_nvtx_pop(void) { nvtxDomainRangePop(domain); }
