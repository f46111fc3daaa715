/* SPDX-License-Identifier: Apache-2.0
 *
 * A driver library with one card, for test_platform_bindings.py: it answers the real pynvml through ctypes, so that a
 * function or a structure that changes there is noticed. What it does not define, an old driver does not have.
 */
#include <stdlib.h>
#include <string.h>

#define NVML_SUCCESS 0
#define NVML_ERROR_UNINITIALIZED 1
#define NVML_ERROR_NOT_SUPPORTED 3

typedef struct {
    char busIdLegacy[16];
    unsigned int domain, bus, device, pciDeviceId, pciSubSystemId;
    char busId[32];
} PciInfo;

typedef struct {
    unsigned long long total, free, used;
} Memory;

static int initialised = 0;
static int card = 1;

static int text(char *to, unsigned int size, const char *from)
{
    if (!initialised)
        return NVML_ERROR_UNINITIALIZED;
    strncpy(to, from, size);
    return NVML_SUCCESS;
}

int nvmlInitWithFlags(unsigned int flags)
{
    const char *code = getenv("NVML_STUB_INIT"); /* what nvmlInit answers */
    (void)flags;
    if (code && atoi(code))
        return atoi(code);
    initialised++;
    return NVML_SUCCESS;
}

int nvmlShutdown(void)
{
    if (!initialised)
        return NVML_ERROR_UNINITIALIZED;
    initialised--;
    return NVML_SUCCESS;
}

const char *nvmlErrorString(int code) { return code ? "an error" : "none"; }
int nvmlSystemGetDriverVersion(char *to, unsigned int size) { return text(to, size, "535.183.01"); }
int nvmlDeviceGetName(void *handle, char *to, unsigned int size) { (void)handle; return text(to, size, "Tesla T4"); }

int nvmlDeviceGetUUID(void *handle, char *to, unsigned int size)
{
    (void)handle;
    return text(to, size, "GPU-74000000-0000-4000-8000-000000000000");
}

int nvmlSystemGetCudaDriverVersion(int *version) { *version = 12020; return NVML_SUCCESS; }
int nvmlDeviceGetCount_v2(unsigned int *count) { *count = 1; return initialised ? NVML_SUCCESS : NVML_ERROR_UNINITIALIZED; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **handle) { (void)index; *handle = &card; return NVML_SUCCESS; }

int nvmlDeviceGetPciInfo_v3(void *handle, PciInfo *info)
{
    (void)handle;
    memset(info, 0, sizeof *info);
    return text(info->busId, sizeof info->busId, "00000000:00:04.0");
}

int nvmlDeviceGetCudaComputeCapability(void *handle, int *major, int *minor)
{
    (void)handle;
    *major = 7;
    *minor = 5;
    return NVML_SUCCESS;
}

int nvmlDeviceGetMaxClockInfo(void *handle, int kind, unsigned int *clock)
{
    (void)handle;
    *clock = kind == 1 ? 1590 : 0; /* NVML_CLOCK_SM */
    return NVML_SUCCESS;
}

int nvmlDeviceGetMemoryInfo(void *handle, Memory *memory)
{
    (void)handle;
    memory->total = 16106127360ULL;
    memory->free = memory->used = 0;
    return NVML_SUCCESS;
}

int nvmlDeviceGetNumGpuCores(void *handle, unsigned int *cores) { (void)handle; *cores = 2560; return NVML_SUCCESS; }
int nvmlDeviceGetMigMode(void *handle, unsigned int *now, unsigned int *next) { (void)handle; (void)now; (void)next; return NVML_ERROR_NOT_SUPPORTED; }
