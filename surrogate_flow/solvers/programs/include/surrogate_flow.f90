! The three calls of surrogate_flow.h for Fortran 2003: sf_open, sf_step, sf_close.
!
!     type(sf_stream) :: stream
!     stream = sf_open([nx, ny])
!     do ...
!         call sf_step(stream, "u", time, u)    ! u(nx, ny), in double precision
!     end do
!     call sf_close(stream)
!
! Compile it, and the C functions, with the program:
!
!     include=$(surrogate-flow include)
!     cc -c -x c -DSF_API= $include/surrogate_flow.h -o surrogate_flow.o
!     gfortran $include/surrogate_flow.f90 heat.f90 surrogate_flow.o -o heat
!
! The dims of the spec are in the order of the indices: u(nx, ny) has dims [x, y].

module surrogate_flow
    use, intrinsic :: iso_c_binding
    implicit none
    private
    public :: sf_stream, sf_open, sf_step, sf_step_float, sf_close

    type :: sf_stream
        private
        type(c_ptr) :: handle = c_null_ptr
    end type sf_stream

    interface
        function c_open(dims, size, first, rank, ranks) bind(c, name="sf_open_fortran")
            import :: c_ptr, c_int, c_size_t
            integer(c_int), value :: dims, rank, ranks
            integer(c_size_t), intent(in) :: size(*), first(*)
            type(c_ptr) :: c_open
        end function c_open

        function c_step(stream, variable, time, values) bind(c, name="sf_step")
            import :: c_ptr, c_char, c_double, c_int
            type(c_ptr), value :: stream
            character(kind=c_char), intent(in) :: variable(*)
            real(c_double), value :: time
            real(c_double), intent(in) :: values(*)
            integer(c_int) :: c_step
        end function c_step

        function c_step_float(stream, variable, time, values) bind(c, name="sf_step_float")
            import :: c_ptr, c_char, c_double, c_float, c_int
            type(c_ptr), value :: stream
            character(kind=c_char), intent(in) :: variable(*)
            real(c_double), value :: time
            real(c_float), intent(in) :: values(*)
            integer(c_int) :: c_step_float
        end function c_step_float

        subroutine c_close(stream) bind(c, name="sf_close")
            import :: c_ptr
            type(c_ptr), value :: stream
        end subroutine c_close
    end interface

contains

    ! Connect to the worker: with the size of the block that this process has, and of an
    ! MPI program where it begins in the whole grid (from 1), the rank and their number.
    function sf_open(size, first, rank, ranks) result(stream)
        integer, intent(in) :: size(:)
        integer, intent(in), optional :: first(:), rank, ranks
        type(sf_stream) :: stream
        integer(c_size_t) :: begin(ubound(size, 1))
        integer(c_int) :: me, all

        begin = 0
        me = 0
        all = 1
        if (present(first)) begin = int(first, c_size_t) - 1
        if (present(rank)) me = int(rank, c_int)
        if (present(ranks)) all = int(ranks, c_int)
        stream%handle = c_open(int(ubound(size, 1), c_int), int(size, c_size_t), begin, me, all)
    end function sf_open

    ! Send a variable of the next step: an array of any number of dims, without gaps.
    subroutine sf_step(stream, variable, time, values)
        type(sf_stream), intent(in) :: stream
        character(len=*), intent(in) :: variable
        real(c_double), intent(in) :: time
        real(c_double), intent(in) :: values(*)
        integer(c_int) :: failed

        failed = c_step(stream%handle, trim(variable)//c_null_char, time, values)
    end subroutine sf_step

    ! The same in single precision.
    subroutine sf_step_float(stream, variable, time, values)
        type(sf_stream), intent(in) :: stream
        character(len=*), intent(in) :: variable
        real(c_double), intent(in) :: time
        real(c_float), intent(in) :: values(*)
        integer(c_int) :: failed

        failed = c_step_float(stream%handle, trim(variable)//c_null_char, time, values)
    end subroutine sf_step_float

    subroutine sf_close(stream)
        type(sf_stream), intent(inout) :: stream

        call c_close(stream%handle)
        stream%handle = c_null_ptr
    end subroutine sf_close
end module surrogate_flow
