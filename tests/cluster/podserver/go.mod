module bgpd.test/podserver

go 1.26.0
