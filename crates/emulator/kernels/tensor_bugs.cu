// The kernels of tensor.cu with one line missing each.
#define BUG_WAIT
#define BUG_REFILL
#define BUG_TICKET
#define BUG_PROXY
#define matmul bug_matmul_wait
#define small_f16 unused_small_f16
#define bulk_double bug_bulk_refill
#define ticket_sum bug_ticket_relaxed
#define warpgroup_product bug_no_proxy_fence
#define histogram unused_histogram
#define transpose unused_transpose
#include "tensor.cu"
