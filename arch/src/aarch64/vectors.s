// The exception vectors. See trap.rs for what the handlers do and for the
// layout of the frame (832 bytes).

.pushsection .text.quire_vectors, "ax"

// Room for a frame, then the test of the stack pointer's bit 16 with no
// register to spare: SP takes the sum with x0 and back.
.macro QUIRE_VECTOR name
    .balign 128
    sub     sp, sp, #832
    add     sp, sp, x0              // sp' = sp + x0
    sub     x0, sp, x0              // x0' = sp
    tbz     x0, #16, 1f
    sub     x0, sp, x0              // x0 again
    sub     sp, sp, x0              // sp again
    b       quire_enter_\name
1:  // Not a stack of ours, or one that has overflowed.
    sub     x0, sp, x0
    sub     sp, sp, x0
    msr     tpidr_el0, x0
    msr     tpidrro_el0, x1
    mov     x0, sp
    mov     x1, #0xffd1             // the area of kernel stacks: 0xffffd1...
    movk    x1, #0x00ff, lsl #16
    cmp     x1, x0, lsr #40
    b.eq    quire_overflow
    mrs     x0, tpidr_el0
    mrs     x1, tpidrro_el0
    b       quire_enter_\name
.endm

// Saves everything below the stack pointer that QUIRE_VECTOR has moved.
.macro QUIRE_SAVE_ALL
    stp     x0, x1, [sp, #0]
    stp     x2, x3, [sp, #16]
    stp     x4, x5, [sp, #32]
    stp     x6, x7, [sp, #48]
    stp     x8, x9, [sp, #64]
    stp     x10, x11, [sp, #80]
    stp     x12, x13, [sp, #96]
    stp     x14, x15, [sp, #112]
    stp     x16, x17, [sp, #128]
    stp     x18, x19, [sp, #144]
    stp     x20, x21, [sp, #160]
    stp     x22, x23, [sp, #176]
    stp     x24, x25, [sp, #192]
    stp     x26, x27, [sp, #208]
    stp     x28, x29, [sp, #224]
    add     x0, sp, #832
    stp     x30, x0, [sp, #240]
    mrs     x1, elr_el1
    mrs     x2, spsr_el1
    stp     x1, x2, [sp, #256]
    mrs     x3, esr_el1
    mrs     x4, far_el1
    stp     x3, x4, [sp, #272]
    stp     x29, x1, [sp, #288]
    mrs     x5, fpcr
    mrs     x6, fpsr
    stp     x5, x6, [sp, #304]
    stp     q0, q1, [sp, #320]
    stp     q2, q3, [sp, #352]
    stp     q4, q5, [sp, #384]
    stp     q6, q7, [sp, #416]
    stp     q8, q9, [sp, #448]
    stp     q10, q11, [sp, #480]
    stp     q12, q13, [sp, #512]
    stp     q14, q15, [sp, #544]
    stp     q16, q17, [sp, #576]
    stp     q18, q19, [sp, #608]
    stp     q20, q21, [sp, #640]
    stp     q22, q23, [sp, #672]
    stp     q24, q25, [sp, #704]
    stp     q26, q27, [sp, #736]
    stp     q28, q29, [sp, #768]
    stp     q30, q31, [sp, #800]
    add     x29, sp, #288
    mov     x0, sp
.endm

.macro QUIRE_ENTRY name, handler
quire_enter_\name:
    QUIRE_SAVE_ALL
    bl      \handler
    b       quire_leave
.endm

    .balign 2048
    .global quire_vectors
quire_vectors:
    // From this exception level, SP_EL0 selected: never used.
    QUIRE_VECTOR unexpected
    QUIRE_VECTOR unexpected
    QUIRE_VECTOR unexpected
    QUIRE_VECTOR unexpected
    // From this exception level, SP_EL1: the kernel.
    QUIRE_VECTOR sync
    QUIRE_VECTOR irq
    QUIRE_VECTOR fiq
    QUIRE_VECTOR serror
    // From a lower level, 64 and 32 bits: there is none.
    QUIRE_VECTOR unexpected
    QUIRE_VECTOR unexpected
    QUIRE_VECTOR unexpected
    QUIRE_VECTOR unexpected
    QUIRE_VECTOR unexpected
    QUIRE_VECTOR unexpected
    QUIRE_VECTOR unexpected
    QUIRE_VECTOR unexpected
    .balign 128

    QUIRE_ENTRY sync, {sync}
    QUIRE_ENTRY irq, {irq}
    QUIRE_ENTRY fiq, {fiq}
    QUIRE_ENTRY serror, {serror}
    QUIRE_ENTRY unexpected, {unexpected}

// Restores the frame at SP and returns to the interrupted code. Interrupts
// are masked.
quire_leave:
    ldp     x1, x2, [sp, #256]
    msr     elr_el1, x1
    msr     spsr_el1, x2
    ldp     x5, x6, [sp, #304]
    msr     fpcr, x5
    msr     fpsr, x6
    ldp     q0, q1, [sp, #320]
    ldp     q2, q3, [sp, #352]
    ldp     q4, q5, [sp, #384]
    ldp     q6, q7, [sp, #416]
    ldp     q8, q9, [sp, #448]
    ldp     q10, q11, [sp, #480]
    ldp     q12, q13, [sp, #512]
    ldp     q14, q15, [sp, #544]
    ldp     q16, q17, [sp, #576]
    ldp     q18, q19, [sp, #608]
    ldp     q20, q21, [sp, #640]
    ldp     q22, q23, [sp, #672]
    ldp     q24, q25, [sp, #704]
    ldp     q26, q27, [sp, #736]
    ldp     q28, q29, [sp, #768]
    ldp     q30, q31, [sp, #800]
    ldp     x2, x3, [sp, #16]
    ldp     x4, x5, [sp, #32]
    ldp     x6, x7, [sp, #48]
    ldp     x8, x9, [sp, #64]
    ldp     x10, x11, [sp, #80]
    ldp     x12, x13, [sp, #96]
    ldp     x14, x15, [sp, #112]
    ldp     x16, x17, [sp, #128]
    ldp     x18, x19, [sp, #144]
    ldp     x20, x21, [sp, #160]
    ldp     x22, x23, [sp, #176]
    ldp     x24, x25, [sp, #192]
    ldp     x26, x27, [sp, #208]
    ldp     x28, x29, [sp, #224]
    ldr     x30, [sp, #240]
    ldp     x0, x1, [sp, #0]
    add     sp, sp, #832
    eret

// A kernel stack has overflowed. x0 and x1 are in TPIDR_EL0 and TPIDRRO_EL0;
// SP is in the guard. The first CPU to come here takes the overflow stack.
quire_overflow:
    adrp    x0, quire_overflow_claim
    add     x0, x0, :lo12:quire_overflow_claim
2:  ldaxr   w1, [x0]
    cbnz    w1, 3f
    stxr    w1, w0, [x0]            // the address will do for "taken"
    cbz     w1, 4f
    b       2b
3:  wfi                             // another CPU is reporting
    b       3b
4:  mov     x1, sp                  // where the stack pointer had got to
    str     x1, [x0, #8]
    sub     sp, x0, #832            // the stack ends where the claim begins
    mrs     x0, tpidr_el0
    mrs     x1, tpidrro_el0
    QUIRE_SAVE_ALL
    adrp    x1, quire_overflow_claim
    add     x1, x1, :lo12:quire_overflow_claim
    ldr     x1, [x1, #8]
    add     x1, x1, #832
    str     x1, [sp, #248]          // the interrupted code's stack pointer
    b       {overflow}

.popsection

.pushsection .bss.quire_overflow, "aw", %nobits
    .balign 16
quire_overflow_stack:
    .zero   32768
quire_overflow_claim:
    .zero   16
.popsection
