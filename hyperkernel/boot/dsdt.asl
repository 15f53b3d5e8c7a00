// Devices that a guest cannot find by itself. Numbers come from address_map.h (dsdt_addresses.cc); the two that depend
// on the guest's RAM come in an SSDT (acpi_tables.cc): P64B and P64L, start and length of the 64-bit PCI window.
// Sections are those of ACPI 6.4.
#include "dsdt_addresses.asi"

DefinitionBlock ("dsdt.aml", "DSDT", 2, "HYPERK", "HYPERKRN", 1)
{
    External (\P64B, IntObj)
    External (\P64L, IntObj)

    // Off (7.4.2.6): SLP_TYP for the sleep control register. No other sleep state.
    Name (\_S5, Package () { HK_SLEEP_S5, 0, 0, 0 })

    Scope (\_SB)
    {
        // Motherboard resources (PNP0C02): what no device of ours may be given. ECAM must be reserved here or in the
        // memory map for Linux to use it (PCI Firmware 3.3, 4.1.2); it is in both.
        Device (MBRD)
        {
            Name (_HID, EisaId ("PNP0C02"))
            Name (_CRS, ResourceTemplate ()
            {
                Memory32Fixed (ReadWrite, HK_ECAM_START, HK_ECAM_BYTES)
                IO (Decode16, HK_PORT_POWER, HK_PORT_POWER, 1, 3)
                IO (Decode16, HK_PORT_PM_TIMER, HK_PORT_PM_TIMER, 1, 4)
            })
        }

        // 16550 on the ISA interrupt of a PC's first serial port (edge, active high).
        Device (COM1)
        {
            Name (_HID, EisaId ("PNP0501"))
            Name (_UID, 1)
            Name (_CRS, ResourceTemplate ()
            {
                IO (Decode16, HK_PORT_SERIAL, HK_PORT_SERIAL, 1, 8)
                IRQNoFlags () { HK_PIN_SERIAL }
            })
        }

        // Time of day. No interrupt: alarms of the clock have no use in a guest, and without one Linux asks for none.
        Device (RTC0)
        {
            Name (_HID, EisaId ("PNP0B00"))
            Name (_CRS, ResourceTemplate ()
            {
                IO (Decode16, HK_PORT_CMOS, HK_PORT_CMOS, 1, 2)
            })
        }

        // pvpanic: one port; the guest's panic and crash-kernel notifier.
        Device (PVPN)
        {
            Name (_HID, "QEMU0001")
            Name (_CRS, ResourceTemplate ()
            {
                IO (Decode16, HK_PORT_PVPANIC, HK_PORT_PVPANIC, 1, 1)
            })
        }

        // Control-method power button (4.8.2.2.1.2); pressed by the event device below.
        Device (PWRB)
        {
            Name (_HID, EisaId ("PNP0C0C"))
        }

        // Generic event device (5.6.9): reduced hardware has no SCI.
        Device (GED0)
        {
            Name (_HID, "ACPI0013")
            Name (_CRS, ResourceTemplate ()
            {
                Interrupt (ResourceConsumer, Level, ActiveHigh, Exclusive) { HK_PIN_EVENTS }
            })
            OperationRegion (EVTR, SystemIO, HK_PORT_EVENTS, 1)
            Field (EVTR, ByteAcc, NoLock, WriteAsZeros)
            {
                EVTS, 8
            }
            Method (_EVT, 1, Serialized)
            {
                // What was seen is cleared before it is handled, so a second press during that is a second event. The
                // pin goes low with the last bit.
                Local0 = EVTS
                EVTS = Local0
                If (Local0 & HK_EVENT_POWER_BUTTON)
                {
                    Notify (\_SB.PWRB, 0x80)
                }
            }
        }

        // PCI Express host bridge: one segment, ECAM.
        Device (PCI0)
        {
            Name (_HID, EisaId ("PNP0A08"))
            Name (_CID, EisaId ("PNP0A03"))
            Name (_UID, 0)
            Name (_SEG, 0)
            Name (_BBN, 0)
            // DMA is coherent (6.2.17).
            Name (_CCA, 1)

            // Windows (6.2.2). Prefetchable or not does not matter to a BAR that is not memory.
            Name (WIN0, ResourceTemplate ()
            {
                WordBusNumber (ResourceProducer, MinFixed, MaxFixed, PosDecode, 0, 0, HK_ECAM_LAST_BUS, 0, HK_ECAM_BUSES)
                IO (Decode16, HK_PORT_PCI_CONFIG, HK_PORT_PCI_CONFIG, 1, 8)
                WordIO (ResourceProducer, MinFixed, MaxFixed, PosDecode, EntireRange,
                    0, HK_PCI_IO_START, 0xFFFF, 0, HK_PCI_IO_BYTES)
                DWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadWrite,
                    0, HK_PCI32_START, HK_PCI32_LAST, 0, HK_PCI32_BYTES)
            })
            Name (WIN1, ResourceTemplate ()
            {
                QWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, Cacheable, ReadWrite,
                    0, 0, 0, 0, 1)
            })
            Method (_CRS, 0, Serialized)
            {
                If (\P64L == 0)
                {
                    Return (WIN0)
                }
                // By offset (6.4.3.5.1): iasl 20200925 does not find the names of fields in a template.
                CreateQWordField (WIN1, 14, WMIN)
                CreateQWordField (WIN1, 22, WMAX)
                CreateQWordField (WIN1, 38, WLEN)
                WMIN = \P64B
                WMAX = \P64B + \P64L - 1
                WLEN = \P64L
                Return (ConcatenateResTemplate (WIN0, WIN1))
            }

            // INTA of slot s is pin HK_PIN_PCI + s % (HK_PIN_PCI_MASK + 1) of the I/O APIC (6.2.13). Drivers use MSI-X;
            // this is for devices that also have a pin and for pci=nomsi, and costs nothing to devices without one.
            Method (_PRT, 0, Serialized)
            {
                Local0 = Package (32) {}
                Local1 = 0
                While (Local1 < 32)
                {
                    Local0[Local1] = Package (4) { 0, 0, 0, 0 }
                    DerefOf (Local0[Local1])[0] = (Local1 << 16) | 0xFFFF
                    DerefOf (Local0[Local1])[3] = HK_PIN_PCI + (Local1 & HK_PIN_PCI_MASK)
                    Local1++
                }
                Return (Local0)
            }
        }
    }
}
