/* A libnvidia-ml.so.1 that replays recorded readings of a real GPU in real time.
 *
 * Configured by environment variables, read by nvmlInitWithFlags:
 *   NVML_STUB_TRACE   CSV: seconds,power_mw,instant_mw,average_mw,energy_mj,memory_bytes,utilization,celsius,sm_mhz,reasons
 *   NVML_STUB_GPUS    number of GPUs (1..16)
 *   NVML_STUB_T0      unix time at which the replay began, so that several processes agree
 *   NVML_STUB_ERRORS  "function=code,function@gpu=code,field186=code": what answers with an NVML error
 *   NVML_STUB_DELAYS  "function=microseconds,*=microseconds": sleep in each call
 *   NVML_STUB_LOST    "gpu:seconds": lost that long after nvmlInit
 *   NVML_STUB_HANG    "function@gpu:after:seconds": the first such call after that time hangs
 *   NVML_STUB_MEMORY_CELSIUS  the memory's temperature of every GPU; where it is not set, none has the sensor
 *   NVML_STUB_MEMORY  bytes in use on every GPU, instead of the trace's
 *   NVML_STUB_PIDS    "gpu:pid:bytes,…": processes on a GPU
 *   NVML_STUB_COUNTS  file for call counts: entries of char name[64]; uint64 calls[16]
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define GPUS 16
#define NAMES 64
#define ROWS 4096
#define TOTAL_BYTES 85520809984ULL

enum { OK = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7, LOST = 15 };

typedef struct { double at; double v[9]; } Row;
enum { POWER, INSTANT, AVERAGE, ENERGY, MEMORY, UTILIZATION, CELSIUS, SM_MHZ, REASONS };
typedef struct { char name[64]; uint64_t calls[GPUS]; } Count;
typedef struct { int index; } Device;

static Row rows[ROWS];
static int row_count, gpu_count, initialised;
static double epoch, opened;
static Device devices[GPUS];
static Count *counts, own_counts[NAMES];
static int hung_once;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static double unix_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static double mono_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void pause_s(double seconds) {
    struct timespec t = {(time_t)seconds, (long)((seconds - (time_t)seconds) * 1e9)};
    while (nanosleep(&t, &t)) { }
}

static const char *setting(const char *name) {
    const char *text = getenv(name);
    return text && *text ? text : NULL;
}

/* The number behind "key=" in a comma list; missing where there is none. */
static double listed(const char *variable, const char *key, double missing) {
    const char *text = setting(variable);
    size_t length = strlen(key);
    while (text) {
        if (!strncmp(text, key, length) && text[length] == '=') return atof(text + length + 1);
        text = strchr(text, ',');
        if (text) text++;
    }
    return missing;
}

static void count(const char *name, int gpu) {
    pthread_mutex_lock(&lock);
    for (int i = 0; i < NAMES; i++) {
        if (!counts[i].name[0]) strncpy(counts[i].name, name, 63);
        if (!strcmp(counts[i].name, name)) { counts[i].calls[gpu]++; break; }
    }
    pthread_mutex_unlock(&lock);
}

static void hang(const char *name, int gpu) {
    const char *text = setting("NVML_STUB_HANG");
    char function[64] = "";
    int where = -1;
    double after = 0, seconds = 0;
    if (!text || hung_once || sscanf(text, "%63[^@]@%d:%lf:%lf", function, &where, &after, &seconds) != 4) return;
    if (where != gpu || strcmp(function, name) || mono_now() - opened < after) return;
    hung_once = 1;
    pause_s(seconds);
}

/* What every call on a GPU goes through: count, delay, hang, lost, configured error. */
static int enter(const char *name, Device *device) {
    char key[96];
    int lost_gpu;
    double lost_at;
    if (!initialised) return UNINITIALIZED;
    int gpu = device ? device->index : 0;
    count(name, gpu);
    double delay = listed("NVML_STUB_DELAYS", name, listed("NVML_STUB_DELAYS", "*", 0));
    if (delay > 0) pause_s(delay / 1e6);
    hang(name, gpu);
    const char *lost = setting("NVML_STUB_LOST");
    if (device && lost && sscanf(lost, "%d:%lf", &lost_gpu, &lost_at) == 2 && lost_gpu == gpu &&
        mono_now() - opened >= lost_at) return LOST;
    snprintf(key, sizeof key, "%s@%d", name, gpu);
    return (int)listed("NVML_STUB_ERRORS", key, listed("NVML_STUB_ERRORS", name, OK));
}

/* The trace's value now; every GPU is at another place in it; the energy counter goes on growing from round to round. */
static double value(Device *device, int column) {
    double period = rows[row_count - 1].at - rows[0].at;
    double t = unix_now() - epoch + device->index * 0.7 + 1000 * period;
    long rounds = (long)(t / period);
    double place = t - rounds * period;
    int i = 0;
    while (i + 1 < row_count && rows[i + 1].at - rows[0].at <= place) i++;
    if (column != ENERGY) return rows[i].v[column];
    double grown = rows[row_count - 1].v[ENERGY] - rows[0].v[ENERGY];
    return (rounds - 1000) * grown + 1e6 + rows[i].v[ENERGY] - rows[0].v[ENERGY];
}

static int load_trace(void) {
    const char *path = setting("NVML_STUB_TRACE");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[512];
    row_count = 0;
    if (!file) return 999;
    while (row_count < ROWS && fgets(line, sizeof line, file)) {
        Row *r = &rows[row_count];
        if (sscanf(line, "%lf,%lf,%lf,%lf,%lf,%lf,%lf,%lf,%lf,%lf", &r->at, &r->v[0], &r->v[1], &r->v[2], &r->v[3],
                   &r->v[4], &r->v[5], &r->v[6], &r->v[7], &r->v[8]) == 10) row_count++;
    }
    fclose(file);
    return row_count >= 2 ? OK : 999;
}

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    int refused = (int)listed("NVML_STUB_ERRORS", "nvmlInitWithFlags", OK);
    double delay = listed("NVML_STUB_DELAYS", "nvmlInitWithFlags", 0);
    if (delay > 0) pause_s(delay / 1e6);
    if (refused) return refused;
    if (initialised) return OK;
    const char *path = setting("NVML_STUB_COUNTS");
    counts = own_counts;
    if (path) {
        int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        if (fd < 0 || ftruncate(fd, sizeof own_counts)) return 999;
        counts = mmap(NULL, sizeof own_counts, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        close(fd);
        if (counts == MAP_FAILED) return 999;
    }
    const char *gpus = setting("NVML_STUB_GPUS"), *t0 = setting("NVML_STUB_T0");
    gpu_count = gpus ? atoi(gpus) : 1;
    if (gpu_count < 0 || gpu_count > GPUS) return 999;
    opened = mono_now();
    epoch = t0 ? atof(t0) : unix_now();
    for (int i = 0; i < GPUS; i++) devices[i].index = i;
    int loaded = load_trace();
    initialised = loaded == OK;
    return loaded;
}

int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { initialised = 0; return OK; }

const char *nvmlErrorString(int code) { return code == LOST ? "GPU is lost" : code == NOT_SUPPORTED ? "Not Supported" : "Unknown Error"; }

static int text(char *out, unsigned size, const char *said) {
    if (strlen(said) + 1 > size) return TOO_SMALL;
    strcpy(out, said);
    return OK;
}

#define ENTER(name, device) do { int refused_ = enter(name, device); if (refused_) return refused_; } while (0)

int nvmlSystemGetDriverVersion(char *out, unsigned size) { ENTER(__func__, NULL); return text(out, size, "580.159.04"); }
int nvmlSystemGetNVMLVersion(char *out, unsigned size) { ENTER(__func__, NULL); return text(out, size, "13.580.159.04"); }
int nvmlSystemGetCudaDriverVersion(int *out) { ENTER(__func__, NULL); *out = 13000; return OK; }
int nvmlSystemGetCudaDriverVersion_v2(int *out) { ENTER(__func__, NULL); *out = 13000; return OK; }
int nvmlDeviceGetCount_v2(unsigned *out) { ENTER(__func__, NULL); *out = gpu_count; return OK; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device **out) {
    if (index >= (unsigned)gpu_count) return INVALID;
    ENTER(__func__, &devices[index]);
    *out = &devices[index];
    return OK;
}

int nvmlDeviceGetUUID(Device *d, char *out, unsigned size) {
    char uuid[48];
    ENTER(__func__, d);
    snprintf(uuid, sizeof uuid, "GPU-30def27d-ab75-0851-92cd-%012d", d->index);
    return text(out, size, uuid);
}

int nvmlDeviceGetHandleByUUID(const char *uuid, Device **out) {
    char own[48];
    for (int i = 0; i < gpu_count; i++) {
        snprintf(own, sizeof own, "GPU-30def27d-ab75-0851-92cd-%012d", i);
        if (!strcmp(own, uuid)) { ENTER(__func__, &devices[i]); *out = &devices[i]; return OK; }
    }
    return NOT_FOUND;
}

int nvmlDeviceGetName(Device *d, char *out, unsigned size) { ENTER(__func__, d); return text(out, size, "NVIDIA H100 80GB HBM3"); }
int nvmlDeviceGetIndex(Device *d, unsigned *out) { ENTER(__func__, d); *out = d->index; return OK; }

typedef struct { unsigned long long total, free, used; } Memory;
int nvmlDeviceGetMemoryInfo(Device *d, Memory *out) {
    ENTER(__func__, d);
    const char *fixed = setting("NVML_STUB_MEMORY");
    out->total = TOTAL_BYTES;
    out->used = fixed ? strtoull(fixed, NULL, 10) : (unsigned long long)value(d, MEMORY);
    out->free = out->total - out->used;
    return OK;
}

typedef struct {
    uint32_t field, scope;
    int64_t timestamp, latency;
    uint32_t type, status;
    union { double d; unsigned ui; unsigned long long ull; } value;
} FieldValue;
int nvmlDeviceGetFieldValues(Device *d, int n, FieldValue *fields) {
    char key[32];
    const char *celsius = setting("NVML_STUB_MEMORY_CELSIUS");
    ENTER(n == 1 && fields->field == 82 ? "nvmlDeviceGetFieldValues:memory" : __func__, d);
    for (int i = 0; i < n; i++) {
        FieldValue *f = &fields[i];
        snprintf(key, sizeof key, "field%u", f->field);
        int known = f->field == 185 || f->field == 186 || (f->field == 82 && celsius);
        f->status = (uint32_t)listed("NVML_STUB_ERRORS", key, known ? OK : NOT_SUPPORTED);
        f->timestamp = (int64_t)(unix_now() * 1e6);
        f->type = 1;
        if (f->status) continue;
        f->value.ui = f->field == 82 ? (unsigned)atoi(celsius) : (unsigned)value(d, f->field == 186 ? INSTANT : AVERAGE);
    }
    return OK;
}

int nvmlDeviceGetPowerUsage(Device *d, unsigned *out) { ENTER(__func__, d); *out = (unsigned)value(d, POWER); return OK; }

typedef struct { unsigned gpu, memory; } Utilization;
int nvmlDeviceGetUtilizationRates(Device *d, Utilization *out) {
    ENTER(__func__, d);
    out->gpu = (unsigned)value(d, UTILIZATION);
    out->memory = out->gpu / 3;
    return OK;
}

int nvmlDeviceGetClockInfo(Device *d, unsigned type, unsigned *out) {
    ENTER(type == 1 ? "nvmlDeviceGetClockInfo:sm" : "nvmlDeviceGetClockInfo:memory", d);
    *out = type == 1 ? (unsigned)value(d, SM_MHZ) : 2619;
    return OK;
}

int nvmlDeviceGetCurrentClocksEventReasons(Device *d, unsigned long long *out) {
    ENTER(__func__, d);
    *out = (unsigned long long)value(d, REASONS);
    return OK;
}

int nvmlDeviceGetCurrentClocksThrottleReasons(Device *d, unsigned long long *out) {
    ENTER(__func__, d);
    *out = (unsigned long long)value(d, REASONS);
    return OK;
}

int nvmlDeviceGetTotalEnergyConsumption(Device *d, unsigned long long *out) {
    ENTER(__func__, d);
    *out = (unsigned long long)value(d, ENERGY);
    return OK;
}

int nvmlDeviceGetTemperature(Device *d, unsigned sensor, unsigned *out) {
    (void)sensor;
    ENTER(__func__, d);
    *out = (unsigned)value(d, CELSIUS);
    return OK;
}

typedef struct { unsigned version, sensor; int celsius; } Temperature;
int nvmlDeviceGetTemperatureV(Device *d, Temperature *out) { ENTER(__func__, d); out->celsius = (int)value(d, CELSIUS); return OK; }

int nvmlDeviceGetEnforcedPowerLimit(Device *d, unsigned *out) { ENTER(__func__, d); *out = 700000; return OK; }
int nvmlDeviceGetPowerManagementDefaultLimit(Device *d, unsigned *out) { ENTER(__func__, d); *out = 700000; return OK; }
int nvmlDeviceGetPersistenceMode(Device *d, unsigned *out) { ENTER(__func__, d); *out = 1; return OK; }
int nvmlDeviceGetComputeMode(Device *d, unsigned *out) { ENTER(__func__, d); *out = 0; return OK; }
int nvmlDeviceGetMigMode(Device *d, unsigned *now, unsigned *next) { ENTER(__func__, d); *now = *next = 0; return OK; }
int nvmlDeviceGetEccMode(Device *d, unsigned *now, unsigned *next) { ENTER(__func__, d); *now = *next = 1; return OK; }
int nvmlDeviceGetCudaComputeCapability(Device *d, int *major, int *minor) { ENTER(__func__, d); *major = 9; *minor = 0; return OK; }

int nvmlDeviceGetTotalEccErrors(Device *d, unsigned kind, unsigned counter, unsigned long long *out) {
    (void)kind; (void)counter;
    ENTER(__func__, d);
    *out = 0;
    return OK;
}

int nvmlDeviceGetPcieThroughput(Device *d, unsigned counter, unsigned *out) { (void)counter; ENTER(__func__, d); *out = 700; return OK; }

typedef struct { unsigned pid; unsigned long long bytes; unsigned gpu_instance, compute_instance; } Process;
static int processes(Device *d, unsigned *n, Process *out) {
    const char *list = setting("NVML_STUB_PIDS");
    unsigned found = 0, room = out ? *n : 0;
    while (list) {
        int gpu;
        unsigned pid;
        unsigned long long bytes;
        if (sscanf(list, "%d:%u:%llu", &gpu, &pid, &bytes) == 3 && gpu == d->index) {
            if (found < room) out[found] = (Process){pid, bytes, ~0u, ~0u};
            found++;
        }
        list = strchr(list, ',');
        if (list) list++;
    }
    *n = found;
    return found > room ? TOO_SMALL : OK;
}

int nvmlDeviceGetComputeRunningProcesses_v2(Device *d, unsigned *n, Process *out) { ENTER(__func__, d); return processes(d, n, out); }
int nvmlDeviceGetComputeRunningProcesses_v3(Device *d, unsigned *n, Process *out) { ENTER(__func__, d); return processes(d, n, out); }
